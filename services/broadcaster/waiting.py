"""What waits for a block although nodes have it: stalled, mined without our seeing it, or never to be mined.

Every `nonce_check_s`, of each account whose lowest waiting nonce has waited for so long:
(1) Ask every node for the account's transaction count: at its newest block, and at the block that was watched last of
those which k nodes call final.
(2) k nodes count past a waiting nonce: it is spent, by whom the watch finds out (`Watcher.revisit`).
(3) k nodes count past it at the final block, and k nodes, asked after that, know no block of any of the transfer's own
transactions: another transaction has the nonce for good. Our own watch has been past that block too, and found none.
(4) k nodes say that the nonce is the account's next, and it has been so, and with the nodes, for `stall_after_s`: it is
stalled, unless k nodes refuse it for what no fee mends. What to do about it is not decided here.
One node's word does none of this; nor does anything while the watch is behind the nodes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.broadcaster import telemetry
from services.broadcaster.proving import places
from services.broadcaster.submission import StallCause
from services.broadcaster.verdicts import Verdicts
from services.broadcaster.views import agreed_number
from services.broadcaster.waiting_store import Waiting, WaitingStore
from services.broadcaster.watching import Watcher
from services.core.canonical import to_hex
from services.core.errors import Code, WalletError
from services.runtime import attributes
from services.runtime.chain_nodes import ChainNodes
from services.runtime.database_clock import DatabaseClock
from services.runtime.json_rpc import Call
from services.runtime.node_answer import NodeRefusal, quantity

_log = logging.getLogger(__name__)

_MOST = 200  # transfers of one account that are looked after at a time


@dataclass(frozen=True, slots=True)
class _Count:
    """An account's transaction counts by one node."""

    latest: int
    final: int | None  # None where there is no final block yet, or the node keeps that state no more


class WaitingChecker:
    def __init__(
        self,
        store: WaitingStore,
        chain: ChainNodes,
        watch: Watcher,
        verdicts: Verdicts,
        clock: DatabaseClock,
        *,
        stall_after_s: float,
        interval_s: float,
        changed: Callable[[], None],
        freed: Callable[[], None],
    ) -> None:
        """`changed` is called after events were committed, `freed` when the window may admit more."""
        self._store = store
        self._chain = chain
        self._watch = watch
        self._verdicts = verdicts
        self._clock = clock
        self._stall_after_s = stall_after_s
        self._interval_s = interval_s
        self._changed = changed
        self._freed = freed
        # By account: the nonce that was next when it was looked at last, and since when.
        self._next: dict[bytes, tuple[int, float]] = {}

    async def run(self) -> None:
        """Check until cancelled, or until the lease is lost."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.check()
            except WalletError as error:
                if error.reason.code is not Code.UNAVAILABLE:
                    raise
                _log.warning("what waits cannot be checked now", extra={"reason": error.reason.name})

    async def check(self) -> None:
        if self._watch.is_behind:
            return
        final_block = self._watch.finalized
        first = await self._store.first_of_accounts(min(self._interval_s, self._stall_after_s))
        self._next = {one.account: self._next[one.account] for one in first if one.account in self._next}
        if not first:
            return
        # (1)
        counts = await self._counts([one.account for one in first], final_block)
        if len(counts) < self._chain.required:
            _log.warning("too few nodes tell transaction counts", extra={"chain_id": self._chain.chain_id})
            return
        stalled = []
        for one in first:
            latest = [counts[node][one.account].latest for node in counts]
            final = [counts[node][one.account].final or 0 for node in counts]
            spent = agreed_number(latest, self._chain.required)
            if spent > one.nonce:
                await self._look_at_spent(one.account, spent, agreed_number(final, self._chain.required))
            elif latest.count(one.nonce) >= self._chain.required and self._is_overdue(one):
                stalled.append(one)
        # (4)
        if stalled and (marked := await self._store.stall(stalled, await self._clock.now())):
            telemetry.stalls.add(marked, {attributes.WALLET_STALL: StallCause.NOT_MINED.value})
            _log.warning("transfers are stalled", extra={"chain_id": self._chain.chain_id, "count": marked})
            self._changed()

    async def _counts(self, accounts: Sequence[bytes], final_block: int) -> dict[str, dict[bytes, _Count]]:
        """By node and account. A node that does not tell them all is left out."""
        calls = [Call("eth_getTransactionCount", [to_hex(account), "latest"]) for account in accounts]
        if final_block >= 0:
            calls += [Call("eth_getTransactionCount", [to_hex(account), hex(final_block)]) for account in accounts]
        counts: dict[str, dict[bytes, _Count]] = {}
        for node, answers in await self._chain.ask_all(lambda node: node.call_many(calls)):
            try:
                if isinstance(answers, WalletError):
                    raise answers
                latest, final = answers[: len(accounts)], answers[len(accounts) :]
                counts[node.name] = {
                    account: _Count(_number(latest[at]), _final_number(final[at]) if final else None)
                    for at, account in enumerate(accounts)
                }
            except WalletError as error:
                _log.warning("a node tells no transaction counts", extra={"node": node.name, "cause": str(error)})
        self._note_disagreement(counts, accounts)
        return counts

    def _note_disagreement(self, counts: dict[str, dict[bytes, _Count]], accounts: Sequence[bytes]) -> None:
        # Newest blocks differ from node to node; what is final does not.
        for account in accounts:
            by_count: dict[int, list[str]] = {}
            for node, told in counts.items():
                if (final := told[account].final) is not None:
                    by_count.setdefault(final, []).append(node)
            if len(by_count) > 1:
                self._chain.note_disagreement("eth_getTransactionCount", list(by_count.values()))

    async def _look_at_spent(self, account: bytes, spent: int, spent_for_good: int) -> None:
        # (2)
        waiting = await self._store.below(account, spent, _MOST)
        for one in waiting:
            self._watch.revisit(one.tx_hash)
        # (3)
        lost = [one for one in waiting if one.nonce < spent_for_good]
        if not lost:
            return
        told = await places(self._chain, [tx_hash for one in lost for tx_hash in one.versions])
        ended = [one for one in lost if self._is_nowhere(one, told)]
        if ended and (marked := await self._store.spend(ended, await self._clock.now())):
            telemetry.nonces_spent.add(marked, {attributes.WALLET_CHAIN_ID: self._chain.chain_id})
            for one in ended:
                _log.error(
                    "another transaction has the nonce for good",
                    extra={"link_id": one.transfer_id, "nonce": one.nonce, "chain_id": self._chain.chain_id},
                )
            self._changed()
            self._freed()

    def _is_nowhere(self, one: Waiting, told: dict[str, dict[bytes, int | None]]) -> bool:
        nowhere = [node for node, found in told.items() if all(found[tx_hash] is None for tx_hash in one.versions)]
        if 0 < len(nowhere) < len(told):
            self._chain.note_disagreement(
                "eth_getTransactionReceipt", [nowhere, [node for node in told if node not in nowhere]]
            )
        return len(nowhere) >= self._chain.required

    def _is_overdue(self, one: Waiting) -> bool:
        now = time.monotonic()
        nonce, since = self._next.get(one.account, (one.nonce, float("-inf")))
        if nonce != one.nonce:
            # It has become the next since the last look: those before it were mined meanwhile.
            since = now
        self._next[one.account] = (one.nonce, since)
        is_long = one.submitted_s >= self._stall_after_s and now - since >= self._stall_after_s
        return is_long and one.stall is None and not self._verdicts.is_beyond_fees(one.tx_hash)


def _number(answer: object) -> int:
    if isinstance(answer, WalletError):
        raise answer
    return quantity(answer, "nonce")


def _final_number(answer: object) -> int | None:
    return None if isinstance(answer, NodeRefusal) else _number(answer)
