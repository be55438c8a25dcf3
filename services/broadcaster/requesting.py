"""Requests of several transactions to several nodes, each on the record before it is sent.

(1) Commit the exact request bodies to the outbox.
(2) Append them to the log.
(3) Send: one JSON-RPC batch a node.
(4) Commit each response, or that there was none.
(5) Append the responses.
A crash before (4) leaves request rows whose outcome is unknown. The next leader appends them (the log knows what it has
already), closes each with "no HTTP answer", which is all that is known, and makes a new attempt.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from services.broadcaster import telemetry
from services.broadcaster.evidence_log import PatientLog
from services.broadcaster.exchange import (
    HttpRequest,
    NodeResponse,
    http_request,
    no_response,
    node_responses,
    request_bodies,
)
from services.broadcaster.outbox import NewOutboxRow, Outbox, OutboxRow
from services.broadcaster.refusals import PASSING, Meaning
from services.broadcaster.request_store import Due, RequestStore, SendOutcome
from services.broadcaster.verdicts import Verdicts
from services.core.entries import Kind
from services.core.errors import Reason, WalletError
from services.runtime import attributes
from services.runtime.chain_nodes import ChainNodes
from services.runtime.database_clock import DatabaseClock
from services.runtime.evidence_log import Entry
from services.runtime.node import Node
from services.runtime.node_answer import HttpAnswer
from services.runtime.transfer_span import TransferSpan

_log = logging.getLogger(__name__)

_FIRST_NODE_S = 1.0  # the next round waits so long for the first node of this one
_GATHER_S = 0.05  # responses that come together are committed together
_GUARD_S = 60.0  # no second attempt while one is on its way
_RETRY_S, _LONGEST_RETRY_S = 0.5, 30.0
_LONGEST_RESEND_S = 600.0
_LONGEST_REFUSED_RESEND_S = 60.0  # what fees or funds forbid now
_REFUSED_S = 5.0  # before a request that the log refused is tried again

T = TypeVar("T")


@dataclass(slots=True)
class _Item:
    """One transaction in a round."""

    due: Due
    attempt: int
    span: TransferSpan
    nodes: list[str] = field(default_factory=list)
    waiting: int = 0  # nodes that have not answered yet
    answered: int = 0  # nodes that have, and need not be asked again, in this and earlier attempts
    is_passing: bool = False  # what one of the others said may be otherwise in a moment


@dataclass(slots=True)
class _NodeBatch:
    """What one node gets in a round."""

    node: Node
    request: HttpRequest
    items: list[_Item]
    rows: list[OutboxRow] = field(default_factory=list)
    spans: list[TransferSpan] = field(default_factory=list)


class Requester:
    def __init__(
        self,
        store: RequestStore,
        outbox: Outbox,
        log: PatientLog,
        chain: ChainNodes,
        verdicts: Verdicts,
        clock: DatabaseClock,
        *,
        resend_after_s: float,
        changed: Callable[[], None],
        revisit: Callable[[bytes], None],
    ) -> None:
        """`changed` is called after events were committed; `revisit` when a node calls a nonce spent."""
        self._store = store
        self._outbox = outbox
        self._log = log
        self._chain = chain
        self._resend_after_s = resend_after_s
        self._changed = changed
        self._revisit = revisit
        self._verdicts = verdicts
        self._clock = clock

    async def recover(self) -> None:
        """Bring the log up to the outbox, and close the requests whose outcome an earlier leader did not see."""
        rows = await self._outbox.rows()
        if not rows:
            return
        outcomes = await self._log.append([row.entry for row in rows])
        self._outbox.note_appended(rows)
        now = await self._clock.now()
        answers: list[NewOutboxRow] = []
        sends: list[SendOutcome] = []
        closes: list[int] = []
        refused: list[OutboxRow] = []
        unheard: list[bytes] = []
        for row, outcome in zip(rows, outcomes, strict=True):
            if row.entry.kind != Kind.REQUEST:
                if isinstance(outcome, WalletError) and row.entry.kind == Kind.RESPONSE:
                    unheard.append(row.tx_hash)
                continue
            if isinstance(outcome, WalletError):
                refused.append(row)
                continue
            answers.append(_response_row(row, no_response(row.node, row.attempt, now)))
            sends.append(SendOutcome(row.tx_hash, [], [], False, 0.0))
            closes.append(row.seq)
        # One outcome a transaction, however many nodes it was on its way to.
        unique = list({send.tx_hash: send for send in sends}.values())
        if refused:
            await self._store.postpone([row.tx_hash for row in refused], [row.seq for row in refused], _REFUSED_S)
        await self._commit_responses(unique, answers, closes, now)
        if unheard:
            await self._store.unanswer(unheard, _REFUSED_S)
        _log.info("requests of unknown outcome were closed", extra={"requests": len(closes)})

    async def serve(self, due: list[Due], healthy: list[Node], started: asyncio.Event) -> None:
        """One round. `started` is set when the first node has it, or has failed to."""
        spans = telemetry.ChainSpans(self._chain.chain_id)
        items = [
            _Item(one, one.attempts + 1, spans.start(telemetry.SUBMISSION, one.traceparent, one.tx_hash)) for one in due
        ]
        try:
            with telemetry.round_span([item.span for item in items], [one.traceparent for one in due]):
                batches = await self._enter_requests(items, healthy)
                posts = {asyncio.create_task(self._post(batch)): batch for batch in batches}
                try:
                    await self._collect(posts, started)
                finally:
                    for post in posts:
                        post.cancel()
        finally:
            started.set()
            for item in items:
                item.span.end()

    async def _enter_requests(self, items: list[_Item], healthy: list[Node]) -> list[_NodeBatch]:
        """Steps (1) and (2): what may be sent now, by node."""
        items, again = await self._assign(items, healthy)
        batches: dict[str, _NodeBatch] = {}
        new_rows: list[NewOutboxRow] = []
        now = await self._clock.now()
        for node in healthy:
            members = [item for item in items if node.name in item.nodes]
            if not members:
                continue
            request = http_request(node.take_ids(len(members)), [item.due.raw_tx for item in members])
            batches[node.name] = _NodeBatch(node, request, members)
            bodies = request_bodies(request, node.name, [item.attempt for item in members], now)
            new_rows += [_request_row(item, node.name, body) for item, body in zip(members, bodies, strict=True)]
        # (1)
        rows = await _until_written(
            lambda: self._store.add_requests([item.due for item in items], again, new_rows, _GUARD_S)
        )
        if rows is None:
            # The next round knows which.
            return []
        # (2)
        outcomes = await self._log.append([row.entry for row in rows])
        self._outbox.note_appended(rows)
        for row in rows:
            batches[row.node].rows.append(row)
        if refused := [row for row, outcome in zip(rows, outcomes, strict=True) if isinstance(outcome, WalletError)]:
            await self._hold_back(refused, batches)
        return [batch for batch in batches.values() if batch.items]

    async def _assign(self, items: list[_Item], healthy: list[Node]) -> tuple[list[_Item], list[bool]]:
        """Name the nodes that each is to be sent to: k, less those that have answered.

        Returns the items that there is a node for, and of each whether k nodes have answered before: then k are asked
        anew.
        """
        k = self._chain.required
        served: list[_Item] = []
        again: list[bool] = []
        for item in items:
            answered = set(item.due.answered_nodes)
            is_again = len(answered) >= k
            if is_again:
                answered.clear()
            item.answered = len(answered)
            # Who was asked in vain is asked after the others, the latest last.
            silent = item.due.silent_nodes
            names = sorted(
                (node.name for node in healthy if node.name not in answered),
                key=lambda name: -silent.index(name) if name in silent else -len(silent) - 1,
            )
            item.nodes = names[: k - len(answered)]
            item.waiting = len(item.nodes)
            if item.nodes:
                served.append(item)
                again.append(is_again)
        if idle := [item.due.tx_hash for item in items if not item.nodes]:
            await _until_written(lambda: self._store.postpone(idle, [], _REFUSED_S))
        return served, again

    async def _hold_back(self, refused: list[OutboxRow], batches: dict[str, _NodeBatch]) -> None:
        """Send nothing that the log has not taken. A batch's digest covers it whole, so what shares one waits too."""
        names = {row.node for row in refused}
        hashes = {row.tx_hash for row in refused}
        kept = [row for name in names for row in batches[name].rows if row not in refused]
        for name in names:
            batches[name].items = []
        await _until_written(lambda: self._store.postpone(list(hashes), [row.seq for row in refused], _REFUSED_S))
        # Entered and not sent: no HTTP answer, and another attempt without the refused ones.
        now = await self._clock.now()
        answers = [_response_row(row, no_response(row.node, row.attempt, now)) for row in kept]
        outcomes = [SendOutcome(tx_hash, [], [], False, 0.0) for tx_hash in {row.tx_hash for row in kept} - hashes]
        await self._commit_responses(outcomes, answers, [row.seq for row in kept], now)

    async def _post(self, batch: _NodeBatch) -> HttpAnswer | None:
        """Step (3). None: no HTTP answer."""
        batch.spans = [telemetry.start_request(item.span, batch.node.name, item.attempt) for item in batch.items]
        try:
            answer = await batch.node.post(batch.request.body)
        except WalletError as error:
            _log.warning("a node gave no answer to a submission", extra=error_facts(error))
            return None
        # By the clock that the request's time is of.
        return replace(answer, received_at=await self._clock.now())

    async def _collect(self, posts: dict[asyncio.Task[HttpAnswer | None], _NodeBatch], started: asyncio.Event) -> None:
        """Steps (4) and (5), for each node as it answers."""
        open_posts = set(posts)
        is_first = True
        while open_posts:
            timeout_s = _FIRST_NODE_S if is_first and not started.is_set() else None
            done, open_posts = await asyncio.wait(open_posts, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            started.set()
            if not done:
                continue
            is_first = False
            if open_posts:
                more, open_posts = await asyncio.wait(open_posts, timeout=_GATHER_S)
                done |= more
            await self._enter_responses([(posts[post], post.result()) for post in done])

    async def _enter_responses(self, answered: list[tuple[_NodeBatch, HttpAnswer | None]]) -> None:
        now = await self._clock.now()
        answers: list[NewOutboxRow] = []
        settled: dict[bytes, list[str]] = {}
        in_vain: dict[bytes, list[str]] = {}
        heard: set[bytes] = set()
        items: dict[bytes, _Item] = {}
        refusals: Counter[tuple[str, Meaning]] = Counter()
        for batch, answer in answered:
            for item, row, response in zip(batch.items, batch.rows, self._responses(batch, answer, now), strict=True):
                tx_hash = item.due.tx_hash
                items[tx_hash] = item
                item.waiting -= 1
                answers.append(_response_row(row, response))
                yes, no = settled.setdefault(tx_hash, []), in_vain.setdefault(tx_hash, [])
                (yes if response.is_settled else no).append(batch.node.name)
                item.answered += response.is_settled
                item.is_passing |= response.meaning in PASSING
                if response.is_answered:
                    heard.add(tx_hash)
                    self._verdicts.note(tx_hash, batch.node.name, response.meaning)
                    if response.meaning is Meaning.NONCE_SPENT:
                        self._revisit(tx_hash)
                    refusals[batch.node.name, response.meaning] += not response.is_settled
            self._end_spans(batch, answer)
        _tell(+refusals)
        outcomes = [
            SendOutcome(
                tx_hash,
                settled[tx_hash],
                in_vain[tx_hash],
                tx_hash in heard,
                self._next_send_s(item),
                self._verdicts.stall(tx_hash),
                item.answered >= self._chain.required,
            )
            for tx_hash, item in items.items()
        ]
        await self._commit_responses(outcomes, answers, [row.seq for batch, _ in answered for row in batch.rows], now)

    async def _commit_responses(
        self, outcomes: list[SendOutcome], answers: list[NewOutboxRow], closes: list[int], now: datetime
    ) -> None:
        # (4)
        rows = await _until_written(lambda: self._store.add_responses(outcomes, answers, closes, now))
        self._changed()
        # (5)
        entered = await self._log.append([row.entry for row in rows])
        self._outbox.note_appended(rows)
        # An inclusion follows an answer that the log has, or none.
        unheard = [row.tx_hash for row, outcome in zip(rows, entered, strict=True) if isinstance(outcome, WalletError)]
        if unheard:
            await _until_written(lambda: self._store.unanswer(unheard, _REFUSED_S))

    def _responses(self, batch: _NodeBatch, answer: HttpAnswer | None, now: datetime) -> list[NodeResponse]:
        attempts = [item.attempt for item in batch.items]
        if answer is None:
            return [no_response(batch.node.name, attempt, now) for attempt in attempts]
        return node_responses(
            batch.request,
            batch.node.name,
            batch.node.client_version,
            attempts,
            [item.due.tx_hash for item in batch.items],
            answer,
        )

    def _next_send_s(self, item: _Item) -> float:
        """When to ask again: rarely once k nodes have it; soon, and other nodes first, while fewer have."""
        turn = min(item.attempt - item.due.earlier_attempts - 1, 16)
        if item.answered >= self._chain.required:
            return min(self._resend_after_s * 2.0**turn, _LONGEST_RESEND_S)
        if item.waiting:
            return _GUARD_S
        if item.is_passing:
            return min(_RETRY_S * 2.0**turn, _LONGEST_RETRY_S)
        return min(self._resend_after_s * 2.0**turn, _LONGEST_REFUSED_RESEND_S)

    def _end_spans(self, batch: _NodeBatch, answer: HttpAnswer | None) -> None:
        for span in batch.spans:
            if answer is None:
                span.mark_failed(Reason.NODE_UNAVAILABLE.name)
            else:
                span.set_attribute(attributes.HTTP_RESPONSE_STATUS_CODE, answer.status)
            span.end()


def _tell(refusals: Counter[tuple[str, Meaning]]) -> None:
    for (node, meaning), count in refusals.items():
        telemetry.refusals.add(
            count, {attributes.WALLET_NODE_NAME: node, attributes.WALLET_NODE_REFUSAL: meaning.value}
        )
        _log.warning("a node refuses transactions", extra={"node": node, "meaning": meaning.value, "count": count})


async def _until_written(step: Callable[[], Awaitable[T]]) -> T:
    """Repeat a commit while the database is away: what nodes have answered is held in memory meanwhile."""
    pause_s = 0.1
    while True:
        try:
            return await step()
        except WalletError as error:
            if error.reason is not Reason.DATABASE_UNAVAILABLE:
                raise
            _log.warning("the database does not answer; waiting", extra=error_facts(error))
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, 2.0)


def _request_row(item: _Item, node: str, body: bytes) -> NewOutboxRow:
    entry_id = f"{Kind.REQUEST}:{node}:{item.attempt}"
    entry = Entry(item.due.transfer_id, entry_id, Kind.REQUEST, *item.span.entry_ids, body)
    return NewOutboxRow(item.due.tx_hash, node, item.attempt, entry)


def _response_row(request: OutboxRow, response: NodeResponse) -> NewOutboxRow:
    entry_id = f"{Kind.RESPONSE}:{request.node}:{request.attempt}"
    entry = request.entry._replace(entry_id=entry_id, kind=Kind.RESPONSE, body=response.body)
    return NewOutboxRow(request.tx_hash, request.node, request.attempt, entry)


def error_facts(error: WalletError) -> dict[str, object]:
    """An error as fields of a log record."""
    return {"reason": error.reason.name, **{f"detail_{name}": value for name, value in error.details.items()}}
