"""The watch over one chain: blocks that k nodes agree on, the proofs found in them, and how final they are.

A look, `watch_interval_s` apart:
(1) Ask every node for its safe and finalized block and for the blocks after ours; go on once k have answered.
(2) Extend our chain by what k nodes give the same hash for, each block's parent being the one before it.
(3) Where a block holds transactions of ours: fetch it whole, and prove them (`inclusion`).
(4) Commit blocks and proofs, and decide which inclusion entries are due.
(5) Append them. (6) Commit the new states.
A block's hash commits to all blocks before it. So a node agrees with us about a block when any block that it calls
safe, or finalized, is one of ours at that height or above: no further questions are asked.

One entry at a look and transaction, with the highest status that is true: a chain whose finality is near goes from
included to finalized, see `safe_patience_s`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.broadcaster import telemetry
from services.broadcaster.chain_store import ChainStore, Height, NewOutboxRow, PendingInclusion
from services.broadcaster.evidence_log import PatientLog
from services.broadcaster.inclusion import Inclusion, inclusion_body, opaque_transactions, prove_inclusions
from services.broadcaster.submission import State
from services.core.canonical import canonical_json, to_hex
from services.core.digests import keccak256
from services.core.entries import Kind
from services.core.errors import Code, Reason, WalletError
from services.runtime import attributes
from services.runtime.evidence_log import Entry
from services.runtime.json_rpc import Call
from services.runtime.nodes import ChainNodes, Node, NodeRefusal, quantity

_log = logging.getLogger(__name__)

_AHEAD = 4  # blocks asked for at a look
_REVISITS = 500  # transactions looked up at a look, and the blocks read again for them:
_REVISITED_BLOCKS = 4
_ENTRIES = 1_000  # inclusion entries at a step
_LONGEST_PAUSE_S = 5.0
_REFUSED_S, _LONGEST_REFUSED_S = 2.0, 300.0  # before an inclusion that the log refused is decided anew
_GRACE_S = 0.1  # for the other nodes, once k have answered a look
_NONE = Height(-1, ())


@dataclass(frozen=True, slots=True)
class _Block:
    number: int
    hash: bytes
    parent_hash: bytes
    tx_hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class _View:
    """What one node says of its chain."""

    name: str
    latest: _Block
    safe: _Block | None
    finalized: _Block | None
    blocks: dict[int, _Block]


@dataclass(frozen=True, slots=True)
class _Agreed:
    """A block that k nodes gave the same hash for, and all of its transactions that any of them named."""

    number: int
    hash: bytes
    parent_hash: bytes
    tx_hashes: frozenset[bytes]
    nodes: tuple[str, ...]


class Watcher:
    def __init__(
        self,
        store: ChainStore,
        log: PatientLog,
        chain: ChainNodes,
        *,
        interval_s: float,
        safe_patience_s: float,
        changed: Callable[[], None],
        freed: Callable[[], None],
    ) -> None:
        """`changed` is called after events were committed, `freed` when the window may admit more."""
        self._store = store
        self._log = log
        self._chain = chain
        self._interval_s = interval_s
        self._safe_patience_s = safe_patience_s
        self._changed = changed
        self._freed = freed
        self._blocks: dict[int, bytes] = {}
        self._safe_since: list[tuple[float, int]] = []
        self._revisits: set[bytes] = set()
        # Inclusions that the log has refused: when each is decided anew, and the pause before that.
        self._refusals: dict[bytes, tuple[float, float]] = {}
        # The nodes have blocks that are not watched yet.
        self.is_behind = True
        # By node name: the question that is on its way, and what was wrong with the last answer.
        self._asked: dict[str, asyncio.Task[_View]] = {}
        self._troubles: dict[str, str] = {}

    def revisit(self, tx_hash: bytes) -> None:
        """A node calls it mined: look whether a block that was watched before holds it."""
        self._revisits.add(tx_hash)

    async def recover(self) -> None:
        """Load the watched blocks, and finish the inclusion entries that an earlier leader had decided."""
        self._blocks = await self._store.blocks()
        await self._enter(await self._store.pending_inclusions())

    async def run(self) -> None:
        """Watch until cancelled, or until the lease is lost."""
        try:
            await self._watch()
        finally:
            for asked in self._asked.values():
                asked.cancel()

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
            WalletError: NODE_UNAVAILABLE when fewer than k nodes give a usable answer.
        """
        views = await self._ask()
        if not self._blocks:
            await self._begin(views)
            return True
        cursor = max(self._blocks)
        head = sorted((view.latest.number for view in views), reverse=True)[self._chain.required - 1]
        self.is_behind = head > cursor
        fork = await self._fork(views, cursor)
        if fork is not None:
            await self._step_back(fork, cursor)
            return True
        # (2)
        agreed = self._extend(views, cursor)
        # (3)
        ours = (
            await self._store.unproven([tx_hash for block in agreed for tx_hash in block.tx_hashes]) if agreed else ()
        )
        found: list[tuple[Inclusion, tuple[str, ...]]] = []
        for block in agreed:
            if wanted := block.tx_hashes.intersection(ours):
                found += [(one, block.nodes) for one in await self._prove(block, wanted)]
        # Until the watch has caught up, it may find them by itself.
        if self._revisits and head <= max([cursor, *(block.number for block in agreed)]):
            found += await self._revisited()
        await self._reopen()
        # (4)
        known = self._blocks | {block.number: block.hash for block in agreed}
        safe, finalized = self._height(views, known, "safe"), self._height(views, known, "finalized")
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
        self.is_behind = head > max(known)
        if found:
            self._freed()
        # (5), (6)
        await self._enter(pending)
        return len(agreed) == _AHEAD or len(pending) == _ENTRIES

    # (1)

    async def _ask(self) -> list[_View]:
        cursor = max(self._blocks) if self._blocks else None
        numbers = range(cursor + 1, cursor + _AHEAD + 1) if cursor is not None else range(0)
        for node in self._chain.nodes:
            if node.name not in self._asked:
                self._asked[node.name] = asyncio.create_task(self._view(node, numbers))
        views: list[_View] = []
        while self._asked:
            # k nodes are enough to go on with. A slow one is heard at the look at which it has answered.
            timeout_s = _GRACE_S if len(views) >= self._chain.required else None
            await asyncio.wait(self._asked.values(), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            answered = [name for name, asked in self._asked.items() if asked.done()]
            if not answered:
                break
            for name in answered:
                if (view := self._heard(name, self._asked.pop(name))) is not None:
                    views.append(view)
        if len(views) < self._chain.required:
            raise WalletError(
                Reason.NODE_UNAVAILABLE,
                Reason.NODE_UNAVAILABLE.meaning,
                chain_id=self._chain.chain_id,
                answered=len(views),
                required=self._chain.required,
            )
        return views

    def _heard(self, name: str, asked: asyncio.Task[_View]) -> _View | None:
        try:
            view = asked.result()
        except WalletError as error:
            cause = str(error)
            if self._troubles.get(name) != cause:
                _log.warning("a node cannot be watched", extra={"node": name, "cause": cause})
            self._troubles[name] = cause
            return None
        self._troubles.pop(name, None)
        return view

    async def _view(self, node: Node, numbers: range) -> _View:
        names = ["latest", "safe", "finalized", *map(hex, numbers)]
        answers = await node.call_many([Call("eth_getBlockByNumber", [name, False]) for name in names])
        latest = _block(node, answers[0])
        if latest is None:
            raise node.nonsense("the node has no latest block", field="latest")
        blocks = {number: _block(node, answer) for number, answer in zip(numbers, answers[3:], strict=True)}
        if any(block is not None and block.number != number for number, block in blocks.items()):
            raise node.nonsense("a block has not the number that was asked for", field="number")
        return _View(
            node.name,
            latest,
            _block(node, answers[1]),
            _block(node, answers[2]),
            {number: block for number, block in blocks.items() if block is not None},
        )

    async def _begin(self, views: Sequence[_View]) -> None:
        """Start at the newest block that k nodes have: nothing was sent before it."""
        number = sorted((view.latest.number for view in views), reverse=True)[self._chain.required - 1]
        agreement = await self._chain.agree(
            "eth_getBlockByNumber", [hex(number), False], normalise=lambda block: _hash(block, "hash")
        )
        await self._store.add_blocks({number: agreement.value}, [], -1, _NONE, (), 0)
        self._blocks = {number: agreement.value}
        _log.info("watching", extra={"chain_id": self._chain.chain_id, "block_number": number})

    # (2)

    def _extend(self, views: Sequence[_View], cursor: int) -> list[_Agreed]:
        agreed: list[_Agreed] = []
        parent = self._blocks[cursor]
        for number in range(cursor + 1, cursor + _AHEAD + 1):
            block = self._agreed(views, number)
            # A parent that is not ours is a reorg between our block and this one: the next look sees it at our block.
            if block is None or block.parent_hash != parent:
                break
            agreed.append(block)
            parent = block.hash
        return agreed

    def _agreed(self, views: Sequence[_View], number: int) -> _Agreed | None:
        blocks = {view.name: view.blocks[number] for view in views if number in view.blocks}
        votes = Counter((block.hash, block.parent_hash) for block in blocks.values())
        if not votes:
            return None
        if len(votes) > 1:
            self._chain.note_disagreement(
                "eth_getBlockByNumber",
                [[name for name, block in blocks.items() if block.hash == voted[0]] for voted in votes],
            )
        (block_hash, parent_hash), count = votes.most_common(1)[0]
        if count < self._chain.required:
            return None
        nodes = tuple(name for name, block in blocks.items() if block.hash == block_hash)
        hashes = frozenset(tx_hash for name in nodes for tx_hash in blocks[name].tx_hashes)
        return _Agreed(number, block_hash, parent_hash, hashes, nodes)

    def _height(self, views: Sequence[_View], known: dict[int, bytes], level: str) -> Height:
        """The highest block at `level` for k nodes, each by a block of ours."""
        heights = {}
        for view in views:
            # What is finalized is safe, whatever a node calls safe.
            heads = (view.finalized,) if level == "finalized" else (view.safe, view.finalized)
            numbers = [head.number for head in heads if head is not None and known.get(head.number) == head.hash]
            if numbers:
                heights[view.name] = max(numbers)
        if len(heights) < self._chain.required:
            return _NONE
        number = sorted(heights.values(), reverse=True)[self._chain.required - 1]
        return Height(number, tuple(name for name, height in heights.items() if height >= number))

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

    async def _prove(self, block: _Agreed, wanted: frozenset[bytes]) -> list[Inclusion]:
        """From any of the agreeing nodes: what it tells must hash to the agreed block.

        Raises:
            WalletError: NODE_UNAVAILABLE when none tells it.
        """
        failure = WalletError(Reason.NODE_UNAVAILABLE, Reason.NODE_UNAVAILABLE.meaning, field="block")
        for node in self._chain.preferred():
            if node.name not in block.nodes:
                continue
            try:
                return await self._prove_from(node, block, wanted)
            except WalletError as error:
                if error.reason is not Reason.NODE_UNAVAILABLE:
                    raise
                failure = node.nonsense(error.message, **error.details)
                _log.warning("a node tells a block wrongly", extra={"node": node.name, "cause": str(error)})
        raise failure

    async def _prove_from(self, node: Node, agreed: _Agreed, wanted: frozenset[bytes]) -> list[Inclusion]:
        number_or_hash = to_hex(agreed.hash)
        block, receipts = await node.call_many(
            [Call("eth_getBlockByHash", [number_or_hash, True]), Call("eth_getBlockReceipts", [number_or_hash])]
        )
        for answer in (block, receipts):
            if isinstance(answer, WalletError):
                raise answer
        if not isinstance(block, dict):
            raise node.nonsense("the node does not have the block", field="block")
        opaque: dict[str, bytes] = {}
        if hashes := opaque_transactions(block):
            answers = await node.call_many([Call("eth_getRawTransactionByHash", [each]) for each in hashes])
            for tx_hash, answer in zip(hashes, answers, strict=True):
                opaque[tx_hash] = _raw(node, tx_hash, answer)
        return await asyncio.to_thread(prove_inclusions, block, receipts, opaque, agreed.hash, wanted)

    async def _revisited(self) -> list[tuple[Inclusion, tuple[str, ...]]]:
        """Proofs of transactions that are said to be in a block which was watched before; each such block once."""
        taken = [self._revisits.pop() for _ in range(min(len(self._revisits), _REVISITS))]
        lost = await self._store.unproven(taken)
        if not lost:
            return []
        try:
            receipts = await self._chain.call_many(
                [Call("eth_getTransactionReceipt", [to_hex(tx_hash)]) for tx_hash in lost]
            )
            places: dict[int, set[bytes]] = {}
            for tx_hash, receipt in zip(lost, receipts, strict=True):
                if isinstance(receipt, dict):
                    places.setdefault(quantity(receipt.get("blockNumber"), "blockNumber"), set()).add(tx_hash)
                else:
                    _log.warning("a nonce is spent by another transaction", extra={"tx_hash": to_hex(tx_hash)})
            found: list[tuple[Inclusion, tuple[str, ...]]] = []
            # What lies above is found by the watch itself.
            numbers = sorted(number for number in places if number <= max(self._blocks))
            for number in numbers[:_REVISITED_BLOCKS]:
                agreement = await self._chain.agree(
                    "eth_getBlockByNumber", [hex(number), False], normalise=lambda block: _hash(block, "hash")
                )
                if self._blocks.get(number, agreement.value) != agreement.value:
                    # A reorg that the watch has yet to see.
                    continue
                block = _Agreed(number, agreement.value, b"", frozenset(), agreement.nodes)
                found += [(one, block.nodes) for one in await self._prove(block, frozenset(places[number]))]
        except WalletError as error:
            if error.reason not in (Reason.NODE_UNAVAILABLE, Reason.NODES_DISAGREE):
                raise
            # Nothing waits for it: whoever is still unproven when it is sent again comes back.
            _log.warning("blocks cannot be looked at again now", extra={"reason": error.reason.name})
            return []
        self._revisits.update(tx_hash for number in numbers[_REVISITED_BLOCKS:] for tx_hash in places[number])
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
                waiting = await self._store.outbox([one.transfer_id for one in pending])
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
                self._store.note_appended(waiting)
                entered = []
                for one, span, outcome in zip(pending, spans, outcomes[len(waiting) :], strict=True):
                    span.set_attribute(attributes.WALLET_STATE, one.status.upper())
                    if isinstance(outcome, WalletError):
                        span.mark_failed(outcome.reason.name)
                        self._refused(one.tx_hash)
                    else:
                        self._refusals.pop(one.tx_hash, None)
                        span.set_attribute(attributes.WALLET_EVIDENCE_INDEX, outcome)
                        entered.append(one.tx_hash)
                await self._store.settle_inclusions(entered, datetime.now(UTC))
                self._changed()
            finally:
                for span in spans:
                    span.end()

    # Reorgs

    async def _fork(self, views: Sequence[_View], cursor: int) -> int | None:
        """The highest block of ours that k nodes still have, when k nodes agree that our newest is not theirs."""
        votes = Counter(block_hash for view in views if (block_hash := _hash_at(view, cursor)) is not None)
        if len(votes) > 1:
            self._chain.note_disagreement(
                "eth_getBlockByNumber",
                [[view.name for view in views if _hash_at(view, cursor) == block_hash] for block_hash in votes],
            )
        if not votes or votes.most_common(1)[0][1] < self._chain.required:
            return None
        if votes.most_common(1)[0][0] == self._blocks[cursor]:
            return None
        for number in sorted(self._blocks, reverse=True)[1:]:
            agreement = await self._chain.agree(
                "eth_getBlockByNumber", [hex(number), False], normalise=lambda block: _hash(block, "hash")
            )
            if agreement.value == self._blocks[number]:
                return number
        # Deeper than what was watched, or than finality: no state can be proven from here on.
        raise WalletError(
            Reason.NODES_DISAGREE, "the nodes' chain holds no block that was watched", chain_id=self._chain.chain_id
        )

    async def _step_back(self, number: int, cursor: int) -> None:
        """Revoke what was included above block `number`, and send it again."""
        _log.error(
            "a reorg drops blocks",
            extra={"chain_id": self._chain.chain_id, "block_number": number, "depth": cursor - number},
        )
        await self._enter(await self._store.pending_inclusions())
        # What was refused is in no link: it is forgotten with its block.
        await self._store.reopen_inclusions(list(self._refusals))
        self._refusals.clear()
        revocations = []
        spans = telemetry.ChainSpans(self._chain.chain_id)
        for one, block_number, block_hash, state in await self._store.included_above(number):
            if state not in (State.INCLUDED, State.SAFE):
                continue
            body = canonical_json(
                {"block_hash": to_hex(block_hash), "reason": "reorg", "depth": cursor - block_number + 1}
            )
            span = spans.start(telemetry.REVOCATION, one.traceparent, one.tx_hash)
            span.end()
            entry_id = f"{Kind.REVOCATION}:{one.number + 1}"
            revocations.append(
                NewOutboxRow(
                    one.tx_hash, "", 0, Entry(one.transfer_id, entry_id, Kind.REVOCATION, *span.entry_ids, body)
                )
            )
        rows = await self._store.revoke(number, revocations, datetime.now(UTC))
        self._blocks = {known: block_hash for known, block_hash in self._blocks.items() if known <= number}
        self._safe_since.clear()
        await self._log.append([row.entry for row in rows])
        self._store.note_appended(rows)
        self._changed()
        self._freed()


def _hash_at(view: _View, number: int) -> bytes | None:
    """What the node has at our newest block's height, without asking for that block, which may be large."""
    if view.latest.number == number:
        return view.latest.hash
    above = view.blocks.get(number + 1)
    return above.parent_hash if above is not None else None


def _block(node: Node, answer: Any) -> _Block | None:
    """None where the node has no such block: it does not exist yet, or nothing is final yet."""
    if answer is None or isinstance(answer, NodeRefusal):
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("transactions"), list):
        raise node.nonsense("a block is no object with transactions", field="transactions")
    try:
        return _Block(
            quantity(answer.get("number"), "number"),
            _hash(answer, "hash"),
            _hash(answer, "parentHash"),
            tuple(_word(tx_hash, "transactions") for tx_hash in answer["transactions"]),
        )
    except WalletError as error:
        raise node.nonsense(error.message, **error.details) from None


def _hash(record: Any, field: str) -> bytes:
    if not isinstance(record, dict):
        raise WalletError(Reason.NODE_UNAVAILABLE, "a node does not have the block", field=field)
    return _word(record.get(field), field)


def _word(value: object, field: str) -> bytes:
    if isinstance(value, str) and len(value) == 66 and value.startswith("0x"):
        try:
            return bytes.fromhex(value[2:])
        except ValueError:
            pass
    raise WalletError(Reason.NODE_UNAVAILABLE, "a node's answer is no 32 bytes of hex", field=field)


def _raw(node: Node, tx_hash: str, answer: Any) -> bytes:
    try:
        raw_tx = bytes.fromhex(answer.removeprefix("0x"))
    except (AttributeError, ValueError):
        raise node.nonsense("a raw transaction is not hex", field="raw_tx") from None
    if to_hex(keccak256(raw_tx)) != tx_hash:
        raise node.nonsense("a raw transaction is another one", field="raw_tx")
    return raw_tx
