"""What gateway rests on in `broadcaster`."""

from __future__ import annotations

import asyncio
import contextlib

from protos.wallet.v1 import broadcaster_pb2 as pb
from services.core.transactions import tx_hash
from tests.fakes.broadcaster import FINALIZED, INCLUDED, SUBMITTED
from tests.fakes.txbuilder import UNKNOWN_CHAIN
from tests.integration.contracts.peers import CHAIN_ID, Peers, refusal, refused_at, unique

QUEUED = pb.SUBMISSION_STATE_QUEUED
DEADLINE_S = 30.0


async def watch(peers: Peers, transfer_id: str, after_cursor: int = 0) -> list[pb.SubmissionEvent]:
    """Every event after the cursor, of all submissions, until this one is final."""
    events: list[pb.SubmissionEvent] = []
    stream = peers.broadcaster.WatchSubmissions(pb.WatchSubmissionsRequest(after_cursor=after_cursor))
    async with asyncio.timeout(DEADLINE_S), contextlib.aclosing(stream):
        async for message in stream:
            for event in message.events:
                events.append(event)
                if (event.submission.transfer_id, event.submission.state) == (transfer_id, FINALIZED):
                    return events
    raise AssertionError("the stream ended")


async def test_a_submission_is_followed_to_finality_without_a_gap(peers: Peers) -> None:
    request = await peers.signed(await peers.account())
    # Who watches before anything is there hears of it all the same.
    live = asyncio.create_task(watch(peers, request.transfer_id))
    taken = await peers.broadcaster.SubmitTransaction(request)
    assert taken.state in (QUEUED, SUBMITTED)
    assert (taken.transfer_id, taken.tx_hash) == (request.transfer_id, tx_hash(request.raw_tx))
    assert (taken.block_number, taken.block_hash, taken.HasField("receipt_status")) == (0, b"", False)
    await peers.finalize(request.transfer_id)
    events = await live
    cursors = [event.cursor for event in events]
    assert cursors == sorted(set(cursors))
    mine = [event for event in events if event.submission.transfer_id == request.transfer_id]
    states = [event.submission.state for event in mine]
    assert (states[:2], states[-1], states) == ([SUBMITTED, INCLUDED], FINALIZED, sorted(set(states)))
    assert {event.submission.tx_hash for event in mine} == {taken.tx_hash}
    assert all(event.HasField("at") for event in mine)
    submitted, *included = mine
    assert (submitted.submission.block_number, submitted.fee_paid_wei) == (0, "")
    for event in included:
        assert event.submission.block_number > 0
        assert len(event.submission.block_hash) == 32
        assert event.submission.receipt_status == 1
        assert int(event.fee_paid_wei) > 0
    # Whoever comes again with a cursor gets what followed it, and nothing else.
    for place in (0, len(events) // 2, len(events) - 2):
        assert await watch(peers, request.transfer_id, cursors[place]) == events[place + 1 :]
    assert await peers.broadcaster.GetSubmission(pb.GetSubmissionRequest(transfer_id=request.transfer_id)) == (
        mine[-1].submission
    )


async def test_a_transfer_is_submitted_once(peers: Peers) -> None:
    account = await peers.account()
    first, second = await peers.signed(account), await peers.signed(account)
    for _ in range(2):
        assert (await peers.broadcaster.SubmitTransaction(first)).tx_hash == tx_hash(first.raw_tx)
    other = pb.SubmitTransactionRequest()
    other.CopyFrom(second)
    other.transfer_id = first.transfer_id
    assert await refusal(peers.broadcaster.SubmitTransaction(other)) == ("ALREADY_EXISTS", "transfer_id")
    other.CopyFrom(first)
    other.transfer_id = unique("t")
    assert await refusal(peers.broadcaster.SubmitTransaction(other)) == ("ALREADY_EXISTS", "raw_tx")
    batch = await peers.broadcaster.SubmitTransactions(pb.SubmitTransactionsRequest(items=[other, second]))
    assert [one.WhichOneof("result") for one in batch.results] == ["error", "submission"]
    assert (batch.results[0].error.reason, batch.results[0].error.details["field"]) == ("ALREADY_EXISTS", "raw_tx")
    assert batch.results[1].submission.transfer_id == second.transfer_id


async def test_a_malformed_item_refuses_its_batch(peers: Peers) -> None:
    account = await peers.account()
    good = await peers.signed(account)
    for field, value, reason in (
        ("chain_id", UNKNOWN_CHAIN, "UNKNOWN_CHAIN"),
        ("transfer_id", "a b", "INVALID_REQUEST"),
        ("traceparent", "no", "INVALID_REQUEST"),
    ):
        bad = pb.SubmitTransactionRequest()
        bad.CopyFrom(good)
        setattr(bad, field, value)
        assert await refusal(peers.broadcaster.SubmitTransaction(bad)) == (reason, field)
        batch = pb.SubmitTransactionsRequest(items=[good, bad])
        assert await refusal(peers.broadcaster.SubmitTransactions(batch)) == (reason, field)
        assert await refused_at(peers.broadcaster.SubmitTransactions(batch)) == "1"
    # The good one was not taken.
    unknown = pb.GetSubmissionRequest(transfer_id=good.transfer_id)
    assert await refusal(peers.broadcaster.GetSubmission(unknown)) == ("NOT_FOUND", "transfer_id")


async def test_the_status_tells_of_each_node(peers: Peers) -> None:
    status = await peers.broadcaster.GetBroadcasterStatus(pb.GetBroadcasterStatusRequest())
    assert len(status.nodes) >= status.nodes_required >= 1
    for node in status.nodes:
        assert (node.chain_id, node.answering, bool(node.name)) == (CHAIN_ID, True, True)
        assert "://" not in node.name
