"""The watch over one chain: blocks that k nodes agree on, the proofs found in them, and how final they are.

A look, `watch_interval_s` apart:
(1) Ask every node for its safe and finalized block and for the blocks after ours; go on once k have answered.
(2) Extend our chain by what k nodes give the same hash for, each block's parent being the one before it.
(3) Where a block holds transactions of ours: fetch it whole, and prove them (`proving`).
(4) Commit blocks and proofs, and decide which inclusion entries are due.
(5) Append them. (6) Commit the new states.

One entry at a look and transaction, with the highest status that is true: a chain whose finality is near goes from
included to finalized, see `safe_patience_s`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence

from services.broadcaster import telemetry
from services.broadcaster.agreement import AgreedBlock, extension, height, is_forked
from services.broadcaster.chain_clock import ChainClock
from services.broadcaster.evidence_log import PatientLog
from services.broadcaster.inclusion import Inclusion, inclusion_body
from services.broadcaster.inclusion_store import Height, InclusionStore, PendingInclusion
from services.broadcaster.outbox import Outbox
from services.broadcaster.proving import agreed_hash, places, prove
from services.broadcaster.reorgs import common_block, revoke_above
from services.broadcaster.submission import StallCause
from services.broadcaster.views import Observer, View, agreed_number
from services.broadcaster.waiting_store import WaitingStore
from services.core.entries import Kind
from services.core.errors import Code, Reason, WalletError
from services.runtime import attributes
from services.runtime.chain_nodes import ChainNodes
from services.runtime.database_clock import DatabaseClock
from services.runtime.evidence_log import Entry

_log = logging.getLogger(__name__)

_AHEAD = 4  # blocks asked for at a look
_REVISITS = 500  # transactions looked up at a look, and the blocks read again for them:
_REVISITED_BLOCKS = 4
_ENTRIES = 1_000  # inclusion entries at a step
_LONGEST_PAUSE_S = 5.0
_REFUSED_S, _LONGEST_REFUSED_S = 2.0, 300.0  # before an inclusion that the log refused is decided anew
_NONE = Height(-1, ())


class Watcher:
    def __init__(
        self,
        store: InclusionStore,
        waiting: WaitingStore,
        outbox: Outbox,
        log: PatientLog,
        chain: ChainNodes,
        clock: DatabaseClock,
        chain_clock: ChainClock,
        *,
        interval_s: float,
        safe_patience_s: float,
        changed: Callable[[], None],
        freed: Callable[[], None],
        broken: Callable[[str], Awaitable[None]],
    ) -> None:
        """`changed` is called after events were committed, `freed` when the window may admit more.

        `broken` marks the chain as one that contradicts a final block, for the cause that it is given.
        """
        self._store = store
        self._waiting = waiting
        self._outbox = outbox
        self._log = log
        self._chain = chain
        self._clock = clock
        self._chain_clock = chain_clock
        self._observer = Observer(chain)
        self._interval_s = interval_s
        self._safe_patience_s = safe_patience_s
        self._changed = changed
        self._freed = freed
        self._broken = broken
        self._blocks: dict[int, bytes] = {}
        self._safe_since: list[tuple[float, int]] = []
        self._revisits: set[bytes] = set()
        # Inclusions that the log has refused: when each is decided anew, and the pause before that.
        self._refusals: dict[bytes, tuple[float, float]] = {}
        # The nodes have blocks that are not watched yet.
        self.is_behind = True
        # The highest block that k nodes called final, as far as it was watched; -1 before there is one.
        self.finalized = -1

    def revisit(self, tx_hash: bytes) -> None:
        """Its nonce is said to be spent: look whether a block that was watched before holds it."""
        self._revisits.add(tx_hash)

    async def recover(self) -> None:
        """Load the watched blocks, and finish the inclusion entries that an earlier leader had decided."""
        self._blocks, self.finalized = await self._store.blocks()
        await self._enter(await self._store.pending_inclusions())

    async def run(self) -> None:
        """Watch until cancelled, until the lease is lost, or the chain contradicts itself."""
        try:
            await self._watch()
        finally:
            self._observer.close()

    async def _watch(self) -> None:
        pause_s = self._interval_s
        while True:
            try:
                has_more = await self.look()
                pause_s = 0.0 if has_more else self._interval_s
            except WalletError as error:
                if error.reason.code is not Code.UNAVAILABLE:
                    raise
                details = {f"detail_{name}": value for name, value in error.details.items()}
                _log.warning("the chain cannot be watched now", extra={"reason": error.reason.name, **details})
                pause_s = min(max(pause_s, 0.1) * 2, _LONGEST_PAUSE_S)
                if error.reason is Reason.DATABASE_UNAVAILABLE:
                    # Whether the last commit took effect is unknown: read again.
                    await self._read_again(pause_s)
            await asyncio.sleep(pause_s)

    async def _read_again(self, pause_s: float) -> None:
        """Until it has been read: an inclusion that was decided in that commit is known to nobody else."""
        while True:
            await asyncio.sleep(pause_s)
            try:
                return await self.recover()
            except WalletError as error:
                if error.reason is not Reason.DATABASE_UNAVAILABLE:
                    raise

    async def look(self) -> bool:
        """One look; True when more is waiting.

        Raises:
            WalletError: NODE_UNAVAILABLE when fewer than k nodes give a usable answer; CHAIN_BROKEN.
        """
        # (1)
        views = await self._views()
        await self._chain_clock.note(views)
        head = agreed_number([view.latest.number for view in views], self._chain.required)
        if not self._blocks:
            await self._begin(head)
            return True
        cursor = max(self._blocks)
        self.is_behind = head > cursor
        if is_forked(self._chain, views, self._blocks):
            return await self._step_back(cursor)
        # (2)
        agreed = extension(self._chain, views, self._blocks[cursor], range(cursor + 1, cursor + _AHEAD + 1))
        # (3)
        found = await self._proven(agreed)
        # Until the watch has caught up, it may find them by itself.
        if self._revisits and head <= max([cursor, *(block.number for block in agreed)]):
            found += await self._revisited()
        await self._reopen()
        # (4)
        known = self._blocks | {block.number: block.hash for block in agreed}
        safe, finalized = (height(self._chain, views, known, level) for level in ("safe", "finalized"))
        pending = await self._store.add_blocks(
            {block.number: block.hash for block in agreed},
            found,
            # Not above what is safe at this look: its nodes are the ones that are named.
            min(self._patient(safe.number), safe.number),
            finalized,
            safe.nodes,
            _ENTRIES,
        )
        oldest = min(finalized.number, max(known))
        self._blocks = {number: block_hash for number, block_hash in known.items() if number >= oldest}
        self.finalized = max(self.finalized, oldest)
        self.is_behind = head > max(known)
        if found:
            self._freed()
        # (5), (6)
        await self._enter(pending)
        return len(agreed) == _AHEAD or len(pending) == _ENTRIES

    async def _views(self) -> list[View]:
        cursor = max(self._blocks) if self._blocks else None
        return await self._observer.views(range(cursor + 1, cursor + _AHEAD + 1) if cursor is not None else range(0))

    async def _begin(self, number: int) -> None:
        """Start at a block that k nodes have: the newest, for nothing was sent before it, or where a reorg led to."""
        block_hash, _ = await agreed_hash(self._chain, number)
        if block_hash is None:
            # It was there a moment ago.
            raise WalletError(Reason.NODES_DISAGREE, Reason.NODES_DISAGREE.meaning, chain_id=self._chain.chain_id)
        await self._store.add_blocks({number: block_hash}, [], -1, _NONE, (), 0)
        self._blocks = {number: block_hash}
        _log.info("watching", extra={"chain_id": self._chain.chain_id, "block_number": number})

    def _patient(self, safe: int) -> int:
        """The height that has been safe for `safe_patience_s`."""
        now = time.monotonic()
        if safe >= 0 and (not self._safe_since or self._safe_since[-1][1] < safe):
            self._safe_since.append((now, safe))
        ripe = [number for since, number in self._safe_since if now - since >= self._safe_patience_s]
        if len(ripe) > 1:
            # Only the highest ripe one still matters.
            del self._safe_since[: len(ripe) - 1]
        return ripe[-1] if ripe else -1

    # (3)

    async def _proven(self, agreed: Sequence[AgreedBlock]) -> list[tuple[Inclusion, tuple[str, ...]]]:
        """What of ours these blocks hold, with the nodes that agree on each."""
        if not agreed:
            return []
        ours = await self._store.unproven([tx_hash for block in agreed for tx_hash in block.tx_hashes])
        found: list[tuple[Inclusion, tuple[str, ...]]] = []
        for block in agreed:
            if wanted := block.tx_hashes.intersection(ours):
                found += [(one, block.nodes) for one in await prove(self._chain, block, wanted)]
        return found

    async def _revisited(self) -> list[tuple[Inclusion, tuple[str, ...]]]:
        """Proofs of transactions that are said to be in a block which was watched before; each such block once."""
        taken = [self._revisits.pop() for _ in range(min(len(self._revisits), _REVISITS))]
        lost = [tx_hash for one in await self._waiting.of_transactions(taken) for tx_hash in one.versions]
        if not lost:
            return []
        try:
            blocks: dict[int, set[bytes]] = {}
            # Any node's word is enough to look; the proof decides. What lies above is found by the watch itself.
            for told in (await places(self._chain, lost)).values():
                for tx_hash, number in told.items():
                    if number is not None and number <= max(self._blocks):
                        blocks.setdefault(number, set()).add(tx_hash)
            numbers = sorted(blocks)
            found: list[tuple[Inclusion, tuple[str, ...]]] = []
            for number in numbers[:_REVISITED_BLOCKS]:
                block_hash, nodes = await agreed_hash(self._chain, number)
                if block_hash is None or self._blocks.get(number, block_hash) != block_hash:
                    # A reorg that the watch has yet to see.
                    continue
                block = AgreedBlock(number, block_hash, b"", frozenset(), nodes)
                found += [(one, nodes) for one in await prove(self._chain, block, frozenset(blocks[number]))]
        except WalletError as error:
            if error.reason not in (Reason.NODE_UNAVAILABLE, Reason.NODES_DISAGREE):
                raise
            # Nothing waits for it: whoever still has no block comes back.
            _log.warning("blocks cannot be looked at again now", extra={"reason": error.reason.name})
            return []
        self._revisits.update(tx_hash for number in numbers[_REVISITED_BLOCKS:] for tx_hash in blocks[number])
        return found

    async def _reopen(self) -> None:
        """Let inclusions that the log refused be decided anew: what it refuses now may be true later."""
        now = time.monotonic()
        if due := [tx_hash for tx_hash, (reopen_at, _) in self._refusals.items() if reopen_at <= now]:
            await self._store.reopen_inclusions(due)
            for tx_hash in due:
                self._refusals[tx_hash] = (math.inf, self._refusals[tx_hash][1])

    def _refused(self, tx_hash: bytes) -> None:
        _, pause_s = self._refusals.get(tx_hash, (0.0, _REFUSED_S / 2))
        pause_s = min(pause_s * 2, _LONGEST_REFUSED_S)
        self._refusals[tx_hash] = (time.monotonic() + pause_s, pause_s)

    # (5), (6)

    async def _enter(self, pending: list[PendingInclusion]) -> None:
        if not pending:
            return
        with telemetry.shared_span(telemetry.WATCH, [one.traceparent for one in pending]):
            own = telemetry.ChainSpans(self._chain.chain_id)
            spans = [own.start(telemetry.INCLUSION, one.traceparent, one.tx_hash) for one in pending]
            try:
                # What is still on its way into these links goes first: nothing may follow `finalized`.
                waiting = await self._outbox.rows([one.transfer_id for one in pending])
                entries = [
                    Entry(
                        one.transfer_id,
                        f"{Kind.INCLUSION}:{one.number}",
                        Kind.INCLUSION,
                        *span.entry_ids,
                        inclusion_body(one.proof, one.status, one.agreeing_nodes),
                    )
                    for one, span in zip(pending, spans, strict=True)
                ]
                outcomes = await self._log.append([*(row.entry for row in waiting), *entries])
                self._outbox.note_appended(waiting)
                entered: list[bytes] = []
                late: list[bytes] = []
                for one, span, outcome in zip(pending, spans, outcomes[len(waiting) :], strict=True):
                    span.set_attribute(attributes.WALLET_STATE, one.status.upper())
                    if isinstance(outcome, WalletError):
                        span.mark_failed(outcome.reason.name)
                        self._refused(one.tx_hash)
                        if outcome.reason is Reason.CLOCK_SKEW:
                            late.append(one.tx_hash)
                    else:
                        self._refusals.pop(one.tx_hash, None)
                        span.set_attribute(attributes.WALLET_EVIDENCE_INDEX, outcome)
                        entered.append(one.tx_hash)
                now = await self._clock.now()
                await self._store.settle_inclusions(entered, now)
                if late and (marked := await self._store.mark_late(late, now)):
                    telemetry.stalls.add(marked, {attributes.WALLET_STALL: StallCause.CHAIN_CLOCK.value})
                self._changed()
            finally:
                for span in spans:
                    span.end()

    # Reorgs

    async def _step_back(self, cursor: int) -> bool:
        """Revoke what was included above the last block that is still the nodes', and send it again.

        Raises:
            WalletError: CHAIN_BROKEN when that lies below what was final.
        """
        number = await common_block(self._chain, self._blocks)
        if number is not None and number >= cursor:
            # The nodes have come back to our chain.
            return True
        oldest = min(self._blocks)
        if number is None and (self.finalized >= oldest or oldest == 0):
            cause = f"the nodes' block {oldest} is not the one that was final"
            await self._broken(cause)
            raise WalletError(Reason.CHAIN_BROKEN, cause, chain_id=self._chain.chain_id)
        _log.error(
            "a reorg drops blocks",
            extra={"chain_id": self._chain.chain_id, "block_number": number, "depth": cursor - (number or oldest)},
        )
        await self._enter(await self._store.pending_inclusions())
        # What was refused is in no link: it is forgotten with its block.
        await self._store.reopen_inclusions(list(self._refusals))
        self._refusals.clear()
        # Of blocks below all that are watched nothing is known: whatever is not final is revoked.
        kept = -1 if number is None else number
        now = await self._clock.now()
        await revoke_above(self._store, self._outbox, self._log, self._chain.chain_id, kept, cursor, now)
        self._blocks = {known: block_hash for known, block_hash in self._blocks.items() if known <= kept}
        self._safe_since.clear()
        self._changed()
        self._freed()
        if number is None:
            await self._begin(max(oldest - 1, 0))
        return True
