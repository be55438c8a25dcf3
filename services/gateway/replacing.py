"""Fee bumps: the same transaction with higher fees, built, signed and handed over beside the one that is not mined.

All versions stay valid for ever, and whichever is mined counts. Every step is stored before the next, so any worker
goes on from where another one stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from protos.wallet.v1 import txbuilder_pb2
from services.core.errors import Reason, WalletError
from services.gateway.asking import SINGLE_TIMEOUT_S, Round, ask_each
from services.gateway.changes import Changes
from services.gateway.metrics import bumps
from services.gateway.peers import Peers
from services.gateway.replacement_rows import Replacement, ReplacementRows
from services.gateway.signatures import Signatures, Unsigned
from services.gateway.submissions import Signed, Submissions
from services.gateway.transfer import State, Transfer
from services.gateway.unsigned import checked_as_asked

_log = logging.getLogger(__name__)

# The market may have moved by then, or an operator the cap.
_CAP_PAUSE_S = 30.0
# Mined before it was signed: the follower tells it, or a reorg takes it back.
_MINED_PAUSE_S = 5.0
_POINTLESS = frozenset({Reason.SUPERSEDED, Reason.LINK_VOIDED, Reason.NONCE_SPENT})
_MINED = frozenset({Reason.OUT_OF_ORDER, Reason.LINK_CLOSED})


class Replacing:
    def __init__(
        self, rows: ReplacementRows, peers: Peers, signatures: Signatures, submissions: Submissions, changes: Changes
    ) -> None:
        self._rows = rows
        self._peers = peers
        self._signatures = signatures
        self._submissions = submissions
        self._changes = changes

    async def run(self, found: Round, transfers: Sequence[Transfer]) -> None:
        """Carry the replacement that each of these transfers wants to the broadcaster. The old version stays there."""
        if not transfers:
            return
        stored = await self._rows.wanted(transfers)
        # What is in a block needs no higher fee; but what is signed is handed over, whatever has happened since.
        mined = [t for t in transfers if t.state is not State.SUBMITTED and not _is_signed(stored.get(t.transfer_id))]
        await self._rows.given_up(mined)
        going_on = [t for t in transfers if t not in mined]
        refused = Round()
        # (1) Higher fees, all else the same.
        await self._build(refused, [t for t in going_on if t.transfer_id not in stored], stored)
        # (2) The same link's next intent and signature.
        await self._sign(refused, [t for t in going_on if t.transfer_id in stored], stored)
        # (3) To the broadcaster, which sends the newest and watches all.
        signed = [t for t in going_on if _is_signed(stored.get(t.transfer_id))]
        await self._hand_over(refused, signed, stored)
        found.postponed += refused.postponed
        await self._pause(refused.failures)

    async def _build(self, refused: Round, transfers: list[Transfer], stored: dict[str, Replacement]) -> None:
        async def bump(transfer: Transfer) -> Any:
            request = txbuilder_pb2.BumpTransactionRequest(
                transfer_id=transfer.transfer_id, replacement=transfer.replacement_wanted or 0
            )
            built = await self._peers.txbuilder.BumpTransaction(request, timeout=SINGLE_TIMEOUT_S)
            return checked_as_asked(transfer, built, transfer.nonce or 0)

        answered = refused.sort(transfers, await ask_each(transfers, bump))
        stored |= await self._rows.built([(transfer, built.unsigned_tx) for transfer, built in answered])

    async def _sign(self, refused: Round, transfers: list[Transfer], stored: dict[str, Replacement]) -> None:
        unsigned = [t for t in transfers if not _is_signed(stored[t.transfer_id])]
        answers = await self._signatures.ask([Unsigned(t, stored[t.transfer_id].unsigned_tx) for t in unsigned])
        rows = [(transfer, signed.raw_tx, signed.tx_hash) for transfer, signed in refused.sort(unsigned, answers)]
        kept = await self._rows.signed(rows)
        for transfer, raw_tx, tx_hash in rows:
            name = transfer.transfer_id
            if name in kept:
                stored[name] = stored[name]._replace(raw_tx=raw_tx, tx_hash=tx_hash)

    async def _hand_over(self, refused: Round, transfers: list[Transfer], stored: dict[str, Replacement]) -> None:
        items = [Signed(transfer, stored[transfer.transfer_id].raw_tx or b"") for transfer in transfers]
        answered = await self._submissions.ask(refused, items)
        kept = await self._rows.handed_over([(transfer, stored[transfer.transfer_id]) for transfer, _ in answered])
        bumps.add(len(kept))
        self._changes.announce(kept)

    async def _pause(self, refusals: list[tuple[Transfer, WalletError]]) -> None:
        """The old version goes on being sent; what a bump is refused for is no failure of the transfer."""
        pointless = [transfer for transfer, error in refusals if error.reason in _POINTLESS]
        await self._rows.given_up(pointless)
        paused: list[tuple[Transfer, str | None, float]] = []
        for transfer, error in refusals:
            if error.reason in _POINTLESS:
                continue
            _log.warning("a fee bump waits", extra={"link_id": transfer.transfer_id, "error": str(error)})
            shown = error.reason.name if error.reason is Reason.FEE_CAP_REACHED else None
            paused.append((transfer, shown, _MINED_PAUSE_S if error.reason in _MINED else _CAP_PAUSE_S))
        await self._rows.paused(paused)


def _is_signed(replacement: Replacement | None) -> bool:
    return replacement is not None and replacement.raw_tx is not None
