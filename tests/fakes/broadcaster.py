"""Submissions in memory and a stream of their states, moved by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from protos.wallet.v1 import broadcaster_pb2, broadcaster_pb2_grpc
from services.core.entries import check_link_id
from services.core.errors import Reason, WalletError, refuse
from services.core.transactions import tx_hash
from services.runtime.rpc_errors import to_item_error
from services.runtime.telemetry import parse_traceparent
from tests.fakes.script import Script

SUBMITTED = broadcaster_pb2.SUBMISSION_STATE_SUBMITTED
INCLUDED = broadcaster_pb2.SUBMISSION_STATE_INCLUDED
SAFE = broadcaster_pb2.SUBMISSION_STATE_SAFE
FINALIZED = broadcaster_pb2.SUBMISSION_STATE_FINALIZED
NONCE_SPENT = broadcaster_pb2.SUBMISSION_STATE_NONCE_SPENT
NOT_MINED = broadcaster_pb2.STALL_CAUSE_NOT_MINED
UNDERPRICED = broadcaster_pb2.STALL_CAUSE_UNDERPRICED
INSUFFICIENT_FUNDS = broadcaster_pb2.STALL_CAUSE_INSUFFICIENT_FUNDS
CHAIN_ID = "eip155:31337"


class FakeBroadcaster(broadcaster_pb2_grpc.BroadcasterServicer):
    """With `queue` submissions are held back; else they are submitted at once. The rest is `move`."""

    def __init__(self) -> None:
        self.script = Script()
        self.queue = False
        self.submissions: dict[str, broadcaster_pb2.Submission] = {}
        self.requests: list[broadcaster_pb2.SubmitTransactionRequest] = []
        self.watched_after: list[int] = []
        self.broken_chains: dict[str, str] = {}
        # Seconds; so far that nothing is sent.
        self.chains_behind: dict[str, int] = {}
        self._places: dict[str, tuple[str, bytes, int]] = {}
        self._transfer_of: dict[bytes, str] = {}
        self._events: list[broadcaster_pb2.SubmissionEvent] = []
        self._streams_closed = asyncio.Event()
        self._frozen = asyncio.Event()

    def move(self, transfer_id: str, *states: int) -> None:
        submission = self.submissions[transfer_id]
        for state in states:
            submission.state = state  # type: ignore[assignment]
            included = state in (INCLUDED, SAFE, FINALIZED)
            for field in ("block_number", "block_hash", "receipt_status"):
                submission.ClearField(field)
            if included:
                submission.block_number, submission.block_hash, submission.receipt_status = 12, b"\x12" * 32, 1
            self._tell(submission)

    def stall(self, transfer_id: str, cause: int, tx_hash: bytes | None = None) -> None:
        """Say of a transaction, the newest unless another is named, why it is not mined."""
        submission = self.submissions[transfer_id]
        submission.stall = cause  # type: ignore[assignment]
        told = broadcaster_pb2.Submission()
        told.CopyFrom(submission)
        told.newest_tx_hash = tx_hash or submission.newest_tx_hash
        self._tell(told)

    def _tell(self, submission: broadcaster_pb2.Submission) -> None:
        included = submission.state in (INCLUDED, SAFE, FINALIZED)
        event = broadcaster_pb2.SubmissionEvent(
            cursor=len(self._events) + 1, submission=submission, fee_paid_wei="21000" if included else ""
        )
        event.at.GetCurrentTime()
        self._events.append(event)

    def freeze_streams(self) -> None:
        """Streams that are open now stay open and tell nothing more."""
        self._frozen.set()
        self._frozen = asyncio.Event()

    def break_streams(self) -> None:
        self._streams_closed.set()
        self._streams_closed = asyncio.Event()

    async def SubmitTransaction(
        self, request: broadcaster_pb2.SubmitTransactionRequest, context: Any
    ) -> broadcaster_pb2.Submission:
        self.script.begin("SubmitTransaction")
        _check(request)
        submission = self._submit(request)
        await self.script.end("SubmitTransaction")
        return submission

    async def SubmitTransactions(
        self, request: broadcaster_pb2.SubmitTransactionsRequest, context: Any
    ) -> broadcaster_pb2.SubmitTransactionsResponse:
        self.script.begin("SubmitTransactions")
        _check_all(request.items)
        reply = broadcaster_pb2.SubmitTransactionsResponse()
        for item in request.items:
            try:
                reply.results.add(submission=self._submit(item))
            except WalletError as error:
                reply.results.add(error=to_item_error(error))
        await self.script.end("SubmitTransactions")
        return reply

    async def GetSubmission(
        self, request: broadcaster_pb2.GetSubmissionRequest, context: Any
    ) -> broadcaster_pb2.Submission:
        if request.transfer_id not in self.submissions:
            raise WalletError(Reason.NOT_FOUND, Reason.NOT_FOUND.meaning, field="transfer_id")
        return self.submissions[request.transfer_id]

    async def WatchSubmissions(
        self, request: broadcaster_pb2.WatchSubmissionsRequest, context: Any
    ) -> AsyncIterator[broadcaster_pb2.SubmissionEvents]:
        self.script.begin("WatchSubmissions")
        self.watched_after.append(request.after_cursor)
        closed, frozen, sent = self._streams_closed, self._frozen, request.after_cursor
        while not closed.is_set():
            if not frozen.is_set() and (events := self._events[sent:]):
                yield broadcaster_pb2.SubmissionEvents(events=events)
                sent = events[-1].cursor
            await asyncio.sleep(0.005)

    async def GetBroadcasterStatus(
        self, request: broadcaster_pb2.GetBroadcasterStatusRequest, context: Any
    ) -> broadcaster_pb2.BroadcasterStatus:
        self.script.begin("GetBroadcasterStatus")
        node = broadcaster_pb2.NodeStatus(
            name="node-a", chain_id=CHAIN_ID, answering=True, block_number=7, client_version="fake/1"
        )
        broken = [broadcaster_pb2.BrokenChain(chain_id=name, cause=cause) for name, cause in self.broken_chains.items()]
        clocks = [
            broadcaster_pb2.ChainClock(chain_id=name, behind_s=seconds, holds=True)
            for name, seconds in self.chains_behind.items()
        ]
        return broadcaster_pb2.BroadcasterStatus(
            nodes=[node], nodes_required=1, broken_chains=broken, chain_clocks=clocks
        )

    def _submit(self, request: broadcaster_pb2.SubmitTransactionRequest) -> broadcaster_pb2.Submission:
        self.requests.append(request)
        identity = tx_hash(request.raw_tx)
        if request.chain_id in self.broken_chains:
            raise WalletError(Reason.CHAIN_BROKEN, Reason.CHAIN_BROKEN.meaning, field="chain_id")
        place = (request.chain_id, request.from_address, request.nonce)
        if self._places.setdefault(request.transfer_id, place) != place:
            raise WalletError(Reason.ALREADY_EXISTS, "stored otherwise", field="transfer_id")
        stored = self.submissions.get(request.transfer_id)
        if stored is not None and self._transfer_of.get(identity) == request.transfer_id:
            return stored
        if self._transfer_of.setdefault(identity, request.transfer_id) != request.transfer_id:
            raise WalletError(Reason.ALREADY_EXISTS, "stored otherwise", field="raw_tx")
        if stored is not None:
            # The bump answers the stall.
            stored.tx_hash = stored.newest_tx_hash = identity
            stored.stall = broadcaster_pb2.STALL_CAUSE_UNSPECIFIED
            self._tell(stored)
            return stored
        submission = self.submissions[request.transfer_id] = broadcaster_pb2.Submission(
            transfer_id=request.transfer_id,
            tx_hash=identity,
            newest_tx_hash=identity,
            state=broadcaster_pb2.SUBMISSION_STATE_QUEUED,
        )
        if not self.queue:
            self.move(request.transfer_id, SUBMITTED)
        return submission


def _check(request: broadcaster_pb2.SubmitTransactionRequest) -> None:
    if request.chain_id != CHAIN_ID:
        raise WalletError(Reason.UNKNOWN_CHAIN, Reason.UNKNOWN_CHAIN.meaning, field="chain_id")
    check_link_id(request.transfer_id, "transfer_id")
    if parse_traceparent(request.traceparent) is None:
        refuse("traceparent", "is a W3C traceparent")


def _check_all(items: Iterable[broadcaster_pb2.SubmitTransactionRequest]) -> None:
    for index, item in enumerate(items):
        try:
            _check(item)
        except WalletError as error:
            raise WalletError(error.reason, error.message, **{**error.details, "index": index}) from None
