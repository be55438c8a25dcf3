"""Repair of nonce gaps: later transactions of an account wait for ever behind a nonce that nothing spends.

A nonce that nobody holds is spent by a superseding link. One held by a transfer that is not on its way is given back
first, once the link is voided; where that turns out to be signed it is superseded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from protos.wallet.v1 import keys_pb2, signer_pb2, txbuilder_pb2
from services.core.errors import Reason, WalletError
from services.gateway.asking import SINGLE_TIMEOUT_S
from services.gateway.chain_health import ChainHealth
from services.gateway.metrics import gap_fills
from services.gateway.peers import Peers
from services.gateway.superseding_rows import SupersedingRows
from services.gateway.telemetry import unsampled
from services.gateway.transfer import AccountKey, State, Transfer
from services.runtime.database_clock import DatabaseClock
from services.runtime.telemetry import new_traceparent

_log = logging.getLogger(__name__)
_SEEN_FOR_S = 30.0


class GapRepair:
    def __init__(
        self,
        rows: SupersedingRows,
        peers: Peers,
        chains: ChainHealth,
        clock: DatabaseClock,
        wake: Callable[[set[AccountKey]], None],
        gap_after_s: float,
    ) -> None:
        self._rows = rows
        self._peers = peers
        self._chains = chains
        self._clock = clock
        self._wake = wake
        self._gap_after_ms = int(gap_after_s * 1_000)
        # Open gaps, and when they were counted.
        self._seen = 0, -_SEEN_FOR_S

    def open_gaps(self) -> int | None:
        """As counted last; None where another gateway counts them."""
        count, at = self._seen
        return count if time.monotonic() < at + _SEEN_FOR_S else None

    async def run(self) -> None:
        """Repair what stands open now, of every account. Two that do so at once do it once.

        Raises:
            WalletError: ask again.
        """
        count, after = 0, None
        while after != "":
            request = txbuilder_pb2.ListGapsRequest(older_than_ms=self._gap_after_ms, after=after or "")
            with unsampled():
                page = await self._peers.txbuilder.ListGaps(request, timeout=SINGLE_TIMEOUT_S)
            await self._repair_all(list(page.gaps))
            count, after = count + len(page.gaps), page.next
        self._seen = count, time.monotonic()

    async def _repair_all(self, gaps: list[txbuilder_pb2.Gap]) -> None:
        if not gaps:
            return
        holders = await self._rows.states([gap.transfer_id for gap in gaps if gap.transfer_id])
        for gap in gaps:
            if self._chains.broken(gap.chain_id) is not None:
                continue
            # Every other state is on its way: the saga, or the broadcaster, has it.
            if not gap.transfer_id or holders.get(gap.transfer_id, State.FAILED) is State.FAILED:
                try:
                    await self._repair(gap)
                except WalletError as error:
                    _log.warning("a gap stays open", extra={"nonce": gap.nonce, "error": str(error)})

    async def _repair(self, gap: txbuilder_pb2.Gap) -> None:
        if gap.transfer_id:
            void = signer_pb2.VoidLinkRequest(transfer_id=gap.transfer_id, cause="holds a nonce and is not on its way")
            try:
                await self._peers.signer.VoidLink(void, timeout=SINGLE_TIMEOUT_S)
            except WalletError as error:
                if error.reason is not Reason.ALREADY_SIGNED:
                    raise
            else:
                release = txbuilder_pb2.ReleaseNonceRequest(transfer_id=gap.transfer_id)
                await self._peers.txbuilder.ReleaseNonce(release, timeout=SINGLE_TIMEOUT_S)
                # Free from here on: the next transfer takes it, or the next look finds it.
                return
        account = (gap.chain_id, gap.from_address)
        name = await self._rows.fill_gap(await self._link(gap), account, gap.nonce)
        if name is not None:
            gap_fills.add(1)
            _log.warning("a gap is filled", extra={"link_id": name, "nonce": gap.nonce})
            self._wake({account})

    async def _link(self, gap: txbuilder_pb2.Gap) -> Transfer:
        address = keys_pb2.AccountAddress(chain_id=gap.chain_id, address=gap.from_address)
        account = await self._peers.keys.GetAccount(keys_pb2.GetAccountRequest(address=address))
        now = await self._clock.now()
        return Transfer(
            transfer_id="",
            state=State.ACCEPTED,
            account_id=account.account_id,
            chain_id=gap.chain_id,
            from_address=gap.from_address,
            to_address=gap.from_address,
            value_wei="0",
            data=b"",
            fees=b"",
            key_id=account.key.key_id,
            key_version=account.key.version,
            traceparent=new_traceparent(),
            personal=None,
            created_at=now,
            updated_at=now,
            nonce=gap.nonce,
            supersedes=gap.transfer_id,
        )
