"""Submissions in memory and a stream of their states, moved by the test."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from protos.wallet.v1 import broadcaster_pb2, broadcaster_pb2_grpc
from services.core.errors import WalletError
from services.runtime.rpc_errors import to_item_error
from tests.fakes.script import Script

SUBMITTED = broadcaster_pb2.SUBMISSION_STATE_SUBMITTED
INCLUDED = broadcaster_pb2.SUBMISSION_STATE_INCLUDED
SAFE = broadcaster_pb2.SUBMISSION_STATE_SAFE
FINALIZED = broadcaster_pb2.SUBMISSION_STATE_FINALIZED


class FakeBroadcaster(broadcaster_pb2_grpc.BroadcasterServicer):
    """With `queue` submissions are held back; else they are submitted at once. The rest is `move`."""

    def __init__(self) -> None:
        self.script = Script()
        self.queue = False
        self.submissions: dict[str, broadcaster_pb2.Submission] = {}
        self.requests: list[broadcaster_pb2.SubmitTransactionRequest] = []
        self.watched_after: list[int] = []
        self._events: list[broadcaster_pb2.SubmissionEvent] = []
        self._streams_closed = asyncio.Event()

    def move(self, transfer_id: str, *states: int) -> None:
        submission = self.submissions[transfer_id]
        for state in states:
            submission.state = state  # type: ignore[assignment]
            if state in (INCLUDED, SAFE, FINALIZED):
                submission.block_number, submission.receipt_status = 12, 1
            event = self._add_event(submission)
            event.at.GetCurrentTime()

    def _add_event(self, submission: broadcaster_pb2.Submission) -> broadcaster_pb2.SubmissionEvent:
        event = broadcaster_pb2.SubmissionEvent(cursor=len(self._events) + 1)
        event.submission.CopyFrom(submission)
        self._events.append(event)
        return event

    def break_streams(self) -> None:
        self._streams_closed.set()
        self._streams_closed = asyncio.Event()

    async def SubmitTransaction(
        self, request: broadcaster_pb2.SubmitTransactionRequest, context: Any
    ) -> broadcaster_pb2.Submission:
        self.script.begin("SubmitTransaction")
        submission = self._submit(request)
        await self.script.end("SubmitTransaction")
        return submission

    async def SubmitTransactions(
        self, request: broadcaster_pb2.SubmitTransactionsRequest, context: Any
    ) -> broadcaster_pb2.SubmitTransactionsResponse:
        self.script.begin("SubmitTransactions")
        reply = broadcaster_pb2.SubmitTransactionsResponse()
        for item in request.items:
            try:
                reply.results.add(submission=self._submit(item))
            except WalletError as error:
                reply.results.add(error=to_item_error(error))
        await self.script.end("SubmitTransactions")
        return reply

    async def WatchSubmissions(
        self, request: broadcaster_pb2.WatchSubmissionsRequest, context: Any
    ) -> AsyncIterator[broadcaster_pb2.SubmissionEvent]:
        self.script.begin("WatchSubmissions")
        self.watched_after.append(request.after_cursor)
        closed, sent = self._streams_closed, request.after_cursor
        while not closed.is_set():
            for event in self._events[sent:]:
                yield event
                sent = event.cursor
            await asyncio.sleep(0.005)

    async def GetBroadcasterStatus(
        self, request: broadcaster_pb2.GetBroadcasterStatusRequest, context: Any
    ) -> broadcaster_pb2.BroadcasterStatus:
        self.script.begin("GetBroadcasterStatus")
        node = broadcaster_pb2.NodeStatus(name="node-a", chain_id="eip155:31337", answering=True, block_number=7)
        return broadcaster_pb2.BroadcasterStatus(nodes=[node], nodes_required=1)

    def _submit(self, request: broadcaster_pb2.SubmitTransactionRequest) -> broadcaster_pb2.Submission:
        self.requests.append(request)
        if request.transfer_id not in self.submissions:
            submission = broadcaster_pb2.Submission(
                transfer_id=request.transfer_id,
                tx_hash=hashlib.sha256(request.raw_tx).digest(),
                state=broadcaster_pb2.SUBMISSION_STATE_QUEUED,
            )
            self.submissions[request.transfer_id] = submission
            if not self.queue:
                self.move(request.transfer_id, SUBMITTED)
        return self.submissions[request.transfer_id]
