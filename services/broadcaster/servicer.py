"""`wallet.v1.Broadcaster` ⇄ domain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from protos.wallet.v1 import broadcaster_pb2 as pb
from protos.wallet.v1 import broadcaster_pb2_grpc
from services.broadcaster.chain_clock import MOST_BEHIND_S
from services.broadcaster.leading import ChainLeader
from services.broadcaster.store import Event, Store
from services.broadcaster.submission import NewSubmission, StallCause, State, Submission, check_submission
from services.core.errors import WalletError, refuse
from services.runtime.node import Node
from services.runtime.node_answer import quantity
from services.runtime.nodes import Nodes
from services.runtime.rpc_errors import to_item_error

MAX_ITEMS = 1_000
_EVENTS = 500
_POLL_S = 1.0  # other replicas write events too
_STATUS_TIMEOUT_S = 1.0

Context = grpc.aio.ServicerContext[Any, Any]


class EventBell:
    """Rung when events were committed in this process; who listens reads the database."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()
        self._rung = asyncio.Event()

    def listen(self) -> asyncio.Event:
        """Take it before reading, so that no ring is missed in between."""
        return self._rung


class BroadcasterServicer(broadcaster_pb2_grpc.BroadcasterServicer):
    def __init__(self, store: Store, nodes: Nodes, leaders: dict[str, ChainLeader], bell: EventBell) -> None:
        self._store = store
        self._nodes = nodes
        self._leaders = leaders
        self._bell = bell

    async def SubmitTransaction(self, request: pb.SubmitTransactionRequest, context: Context) -> pb.Submission:
        (outcome,) = await self._submit([self._check(request)])
        if isinstance(outcome, WalletError):
            raise outcome
        return _to_submission(outcome)

    async def SubmitTransactions(
        self, request: pb.SubmitTransactionsRequest, context: Context
    ) -> pb.SubmitTransactionsResponse:
        if not 1 <= len(request.items) <= MAX_ITEMS:
            refuse("items", f"has 1 to {MAX_ITEMS} elements")
        items = []
        for index, item in enumerate(request.items):
            try:
                items.append(self._check(item))
            except WalletError as error:
                raise WalletError(error.reason, error.message, **{**error.details, "index": index}) from None
        return pb.SubmitTransactionsResponse(results=[_to_result(outcome) for outcome in await self._submit(items)])

    async def GetSubmission(self, request: pb.GetSubmissionRequest, context: Context) -> pb.Submission:
        return _to_submission(await self._store.get(request.transfer_id))

    async def WatchSubmissions(
        self, request: pb.WatchSubmissionsRequest, context: Context
    ) -> AsyncIterator[pb.SubmissionEvents]:
        cursor = request.after_cursor
        while True:
            bell = self._bell.listen()
            events = await self._store.events_after(cursor, _EVENTS)
            if events:
                # One message: each costs both ends as much as the changes of a batch do.
                yield pb.SubmissionEvents(events=[_to_event(event) for event in events])
                cursor = events[-1].cursor
            if len(events) < _EVENTS:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):
                        await bell.wait()

    async def GetBroadcasterStatus(
        self, request: pb.GetBroadcasterStatusRequest, context: Context
    ) -> pb.BroadcasterStatus:
        broken, behind_s = await self._store.broken_chains(), await self._store.clocks_behind_s()
        nodes = [node for chain in self._nodes.chains for node in chain.nodes]
        return pb.BroadcasterStatus(
            nodes=await asyncio.gather(*map(_node_status, nodes)),
            nodes_required=self._nodes.required,
            broken_chains=[pb.BrokenChain(chain_id=chain_id, cause=cause) for chain_id, cause in broken.items()],
            chain_clocks=[
                pb.ChainClock(chain_id=chain_id, behind_s=seconds, holds=seconds > MOST_BEHIND_S)
                for chain_id, seconds in behind_s.items()
            ],
        )

    def _check(self, request: pb.SubmitTransactionRequest) -> NewSubmission:
        self._nodes.chain(request.chain_id)
        return check_submission(
            request.transfer_id,
            request.chain_id,
            request.from_address,
            request.nonce,
            request.raw_tx,
            request.traceparent,
        )

    async def _submit(self, items: Sequence[NewSubmission]) -> list[Submission | WalletError]:
        outcomes = await self._store.add(items)
        for chain_id in {item.chain_id for item in items}:
            self._leaders[chain_id].wake()
        return outcomes


async def _node_status(node: Node) -> pb.NodeStatus:
    status = pb.NodeStatus(name=node.name, chain_id=node.chain_id)
    with suppress(WalletError, TimeoutError):
        async with asyncio.timeout(_STATUS_TIMEOUT_S):
            status.block_number = quantity(await node.call("eth_blockNumber"), "eth_blockNumber")
        status.answering = True
    status.client_version = node.client_version or ""
    return status


_STATES = {
    State.QUEUED: pb.SUBMISSION_STATE_QUEUED,
    # On the record, and not known to be with a node.
    State.REQUESTED: pb.SUBMISSION_STATE_QUEUED,
    State.SUBMITTED: pb.SUBMISSION_STATE_SUBMITTED,
    State.INCLUDED: pb.SUBMISSION_STATE_INCLUDED,
    State.SAFE: pb.SUBMISSION_STATE_SAFE,
    State.FINALIZED: pb.SUBMISSION_STATE_FINALIZED,
    State.NONCE_SPENT: pb.SUBMISSION_STATE_NONCE_SPENT,
}
_STALLS = {
    None: pb.STALL_CAUSE_UNSPECIFIED,
    StallCause.NOT_MINED: pb.STALL_CAUSE_NOT_MINED,
    StallCause.UNDERPRICED: pb.STALL_CAUSE_UNDERPRICED,
    StallCause.INSUFFICIENT_FUNDS: pb.STALL_CAUSE_INSUFFICIENT_FUNDS,
    StallCause.CHAIN_CLOCK: pb.STALL_CAUSE_CHAIN_CLOCK,
}
_SHOWS_BLOCK = frozenset({State.INCLUDED, State.SAFE, State.FINALIZED})


def _to_submission(submission: Submission) -> pb.Submission:
    reply = pb.Submission(
        transfer_id=submission.transfer_id,
        tx_hash=submission.tx_hash,
        state=_STATES[submission.state],
        stall=_STALLS[submission.stall],
        newest_tx_hash=submission.newest_tx_hash,
    )
    # A block is known before its inclusion is entered; it is shown with it.
    if submission.state in _SHOWS_BLOCK:
        reply.block_number = submission.block_number or 0
        reply.block_hash = submission.block_hash or b""
        if submission.receipt_status is not None:
            reply.receipt_status = submission.receipt_status
    return reply


def _to_result(outcome: Submission | WalletError) -> pb.SubmitResult:
    if isinstance(outcome, WalletError):
        return pb.SubmitResult(error=to_item_error(outcome))
    return pb.SubmitResult(submission=_to_submission(outcome))


@lru_cache(maxsize=16)  # the events of one commit share their time
def _since_epoch(at: datetime) -> tuple[int, int]:
    """The two fields of a Timestamp."""
    timestamp = Timestamp()
    timestamp.FromDatetime(at)
    return timestamp.seconds, timestamp.nanos


def _to_event(event: Event) -> pb.SubmissionEvent:
    shown = event.submission.state in _SHOWS_BLOCK and event.fee_paid_wei is not None
    reply = pb.SubmissionEvent(
        cursor=event.cursor,
        submission=_to_submission(event.submission),
        fee_paid_wei=str(event.fee_paid_wei) if shown else "",
    )
    reply.at.seconds, reply.at.nanos = _since_epoch(event.at)
    return reply
