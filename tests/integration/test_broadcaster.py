"""The broadcaster against real PostgreSQL, the real log's grammar and anvil: from submission to finality."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from protos.wallet.v1 import broadcaster_pb2 as pb
from protos.wallet.v1 import evidence_pb2
from services.broadcaster import proving
from services.broadcaster.inclusion import prove_inclusions
from services.core.canonical import canonical_json
from services.core.errors import Reason, WalletError
from tests.fakes.recorded_spans import spans_of_this_process
from tests.integration.broadcaster_rig import SENDER, Rig, make_transfer, rig
from tests.integration.running_evidence import DevCa

QUEUED, SUBMITTED = pb.SUBMISSION_STATE_QUEUED, pb.SUBMISSION_STATE_SUBMITTED
_SENDER = "0x" + SENDER.hex()
INCLUDED, FINALIZED = pb.SUBMISSION_STATE_INCLUDED, pb.SUBMISSION_STATE_FINALIZED


@pytest.fixture
async def broadcaster(
    service_database: Callable[[str], Any], dev_ca: DevCa, start_anvil: Callable[..., str], tmp_path: Path
) -> AsyncIterator[Rig]:
    async with rig(service_database, dev_ca, start_anvil(block_time_s=1.0), tmp_path, max_in_flight=64) as made:
        await made.start()
        yield made


def kinds(entries: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [entry_id.split(":")[0] for entry_id, _ in entries]


async def test_a_transfer_goes_to_two_nodes_and_is_proven_to_finality(broadcaster: Rig) -> None:
    transfer = make_transfer("t-1", 0)
    await broadcaster.sign(transfer)
    await broadcaster.submit(transfer)
    events = await broadcaster.until(FINALIZED, transfer)
    states = [event.submission.state for event in events]
    assert states == sorted(states)
    assert states[0] == SUBMITTED
    assert states[-1] == FINALIZED
    assert events[-1].submission.receipt_status == 1
    assert int(events[-1].fee_paid_wei) >= 21_000
    entries = await broadcaster.entries(transfer)
    ids = [entry_id for entry_id, _ in entries]
    assert ids[2:4] == ["request:node-a:1", "request:node-b:1"]
    assert set(ids[4:6]) == {"response:node-a:1", "response:node-b:1"}
    final = entries[-1][1]
    assert final["status"] == "finalized"
    assert len(final["agreeing_nodes"]) >= 2
    assert kinds(entries)[6:] == ["inclusion"] * len(entries[6:])
    response = dict(entries)["response:node-a:1"]
    assert response["headers"]["x-node-id"] == "node-a"
    assert response["client_version"].startswith("anvil")


async def test_a_batch_shares_one_http_body_and_submitting_again_changes_nothing(broadcaster: Rig) -> None:
    transfers = [make_transfer(f"t-{nonce}", nonce) for nonce in range(20)]
    await broadcaster.sign(*transfers)
    await broadcaster.submit(*reversed(transfers))
    await broadcaster.submit(*transfers)
    await broadcaster.until(FINALIZED, *transfers)
    await broadcaster.submit(*transfers)
    assert int(await broadcaster.rpc("eth_getTransactionCount", _SENDER, "latest"), 16) == 20
    batches = set()
    for transfer in transfers:
        entries = dict(await broadcaster.entries(transfer))
        assert len([entry_id for entry_id in entries if entry_id.startswith("request")]) == 2
        batches.add(entries["request:node-a:1"]["batch"]["sha256"])
    assert len(batches) == 1


async def test_a_nonce_waits_for_the_one_before_it(broadcaster: Rig) -> None:
    first, second = make_transfer("t-0", 0), make_transfer("t-1", 1)
    await broadcaster.sign(first, second)
    await broadcaster.submit(second)
    await asyncio.sleep(0.8)
    assert kinds(await broadcaster.entries(second)) == ["intent", "signature"]
    await broadcaster.submit(first)
    await broadcaster.until(INCLUDED, first, second)


async def test_the_window_holds_back_what_is_over_it(
    service_database: Callable[[str], Any], dev_ca: DevCa, start_anvil: Callable[..., str], tmp_path: Path
) -> None:
    async with rig(service_database, dev_ca, start_anvil(block_time_s=1.0), tmp_path, max_in_flight=3) as made:
        await made.rpc("evm_setIntervalMining", 0)
        await made.start()
        transfers = [make_transfer(f"t-{nonce}", nonce) for nonce in range(7)]
        await made.sign(*transfers)
        await made.submit(*transfers)
        await made.until(SUBMITTED, *transfers[:3])
        await asyncio.sleep(0.6)
        states = [
            (await made.servicer.GetSubmission(pb.GetSubmissionRequest(transfer_id=t.transfer_id), None)).state  # type: ignore[arg-type]
            for t in transfers
        ]
        assert states == [SUBMITTED] * 3 + [QUEUED] * 4
        await made.rpc("evm_setIntervalMining", 1)
        await made.until(INCLUDED, *transfers)


async def test_a_silent_node_is_replaced_by_another_on_a_new_attempt(broadcaster: Rig) -> None:
    await broadcaster.until_watching()
    await broadcaster.rpc("evm_setIntervalMining", 0)
    broadcaster.proxies.fault("node-a", methods=["eth_sendRawTransaction"], drop="request")
    transfer = make_transfer("t-1", 0)
    await broadcaster.sign(transfer)
    await broadcaster.submit(transfer)
    await broadcaster.until_entered(transfer, "response:node-c:2")
    await broadcaster.rpc("evm_setIntervalMining", 1)
    await broadcaster.until(FINALIZED, transfer)
    entries = dict(await broadcaster.entries(transfer))
    assert entries["response:node-a:1"]["http_status"] is None
    assert entries["response:node-b:1"]["http_status"] == 200
    assert "request:node-c:2" in entries


async def test_evidence_away_means_that_nothing_is_sent(broadcaster: Rig) -> None:
    transfer = make_transfer("t-1", 0)
    await broadcaster.sign(transfer)
    broadcaster.evidence.is_away = True
    await broadcaster.submit(transfer)
    await asyncio.sleep(1.0)
    assert await broadcaster.rpc("eth_getTransactionByHash", "0x" + transfer.tx_hash.hex()) is None
    broadcaster.evidence.is_away = False
    await broadcaster.until(FINALIZED, transfer)


async def test_what_the_log_refuses_is_not_sent(broadcaster: Rig) -> None:
    """Without intent and signature in the log there is no request: the neighbour goes its way."""
    unsigned, signed = make_transfer("t-0", 0), make_transfer("t-1", 1)
    await broadcaster.sign(signed)
    await broadcaster.submit(unsigned)
    await asyncio.sleep(0.8)
    assert await broadcaster.rpc("eth_getTransactionByHash", "0x" + unsigned.tx_hash.hex()) is None
    await broadcaster.sign(unsigned)
    await broadcaster.submit(signed)
    await broadcaster.until(INCLUDED, unsigned, signed)


async def test_a_lying_node_cannot_place_a_transaction(broadcaster: Rig) -> None:
    await broadcaster.until_watching()
    broadcaster.proxies.fault("node-a", results={"eth_getBlockReceipts": []})
    transfer = make_transfer("t-1", 0)
    await broadcaster.sign(transfer)
    await broadcaster.submit(transfer)
    await broadcaster.until(FINALIZED, transfer)


async def test_disagreement_about_a_block_stops_inclusion_until_k_agree(broadcaster: Rig) -> None:
    await broadcaster.until_watching()
    block = await broadcaster.rpc("eth_getBlockByNumber", "0x0", False)
    for name in ("node-a", "node-b"):
        broadcaster.proxies.fault(name, results={"eth_getBlockByNumber": {**block, "hash": "0x" + name[-1] * 64}})
    transfer = make_transfer("t-1", 0)
    await broadcaster.sign(transfer)
    await broadcaster.submit(transfer)
    await broadcaster.until(SUBMITTED, transfer)
    await asyncio.sleep(2.0)
    assert "inclusion" not in kinds(await broadcaster.entries(transfer))
    broadcaster.proxies.heal()
    await broadcaster.until(FINALIZED, transfer)


@pytest.mark.parametrize("kind", ["request", "response", "inclusion"])
async def test_a_crash_after_an_append_is_finished_by_the_next_process(broadcaster: Rig, kind: str) -> None:
    transfers = [make_transfer(f"t-{nonce}", nonce) for nonce in range(3)]
    await broadcaster.sign(*transfers)
    reached = asyncio.Event()

    def cut(request: Any) -> bool:
        if any(entry.kind == kind for entry in request.entries):
            reached.set()
            return True
        return False

    broadcaster.evidence.cut_after = cut
    await broadcaster.submit(*transfers)
    async with asyncio.timeout(20):
        await reached.wait()
    await broadcaster.kill()
    broadcaster.evidence.cut_after = lambda request: False
    await broadcaster.start()
    await broadcaster.until(FINALIZED, *transfers)
    assert int(await broadcaster.rpc("eth_getTransactionCount", _SENDER, "latest"), 16) == 3
    for transfer in transfers:
        ids = [entry_id for entry_id, _ in await broadcaster.entries(transfer)]
        requests = {entry_id.removeprefix("request") for entry_id in ids if entry_id.startswith("request")}
        responses = {entry_id.removeprefix("response") for entry_id in ids if entry_id.startswith("response")}
        assert requests == responses


async def test_a_reorg_revokes_and_submits_again(
    service_database: Callable[[str], Any], dev_ca: DevCa, start_anvil: Callable[..., str], tmp_path: Path
) -> None:
    async with rig(service_database, dev_ca, start_anvil(block_time_s=1.0, slots_in_an_epoch=32), tmp_path) as made:
        await made.start()
        await made.until_watching()
        transfer = make_transfer("t-1", 0)
        await made.sign(transfer)
        await made.submit(transfer)
        event = (await made.until(INCLUDED, transfer))[-1]
        depth = int(await made.rpc("eth_blockNumber"), 16) - event.submission.block_number + 1
        await made.rpc("anvil_reorg", depth, [])
        await made.until_entered(transfer, "inclusion:2")
        found = [entry_id for entry_id, _ in await made.entries(transfer)]
        assert "revocation:1" in found
        assert found.index("inclusion:1") < found.index("revocation:1") < found.index("inclusion:2")


async def test_a_reverted_transaction_is_included_with_status_0(broadcaster: Rig) -> None:
    # Code that reverts: PUSH1 0 PUSH1 0 REVERT.
    await broadcaster.rpc("anvil_setCode", "0x" + "11" * 20, "0x60006000fd")
    transfer = make_transfer("t-1", 0, value_wei=0)
    await broadcaster.sign(transfer)
    await broadcaster.submit(transfer)
    events = await broadcaster.until(INCLUDED, transfer)
    assert events[-1].submission.receipt_status == 0


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"nonce": 1}, Reason.INVALID_REQUEST, "nonce"),
        ({"chain_id": "eip155:1"}, Reason.UNKNOWN_CHAIN, "chain_id"),
        ({"from_address": b"\x22" * 19}, Reason.INVALID_REQUEST, "from_address"),
        ({"raw_tx": b"\x02"}, Reason.INVALID_REQUEST, "raw_tx"),
        ({"traceparent": "00-x"}, Reason.INVALID_REQUEST, "traceparent"),
        ({"transfer_id": "a b"}, Reason.INVALID_REQUEST, "transfer_id"),
    ],
)
async def test_a_wrong_submission_is_refused_whole(
    broadcaster: Rig, change: dict[str, Any], reason: Reason, field: str
) -> None:
    good, bad = make_transfer("t-0", 0).request(), make_transfer("t-1", 0, value_wei=2).request()
    for name, value in change.items():
        setattr(bad, name, value)
    with pytest.raises(WalletError) as refused:
        await broadcaster.servicer.SubmitTransactions(pb.SubmitTransactionsRequest(items=[good, bad]), None)  # type: ignore[arg-type]
    assert (refused.value.reason, refused.value.details["field"]) == (reason, field)
    assert refused.value.details["index"] == 1
    with pytest.raises(WalletError, match="NOT_FOUND"):
        await broadcaster.servicer.GetSubmission(pb.GetSubmissionRequest(transfer_id="t-0"), None)  # type: ignore[arg-type]


async def test_a_transfer_id_is_taken_once(broadcaster: Rig) -> None:
    await broadcaster.submit(make_transfer("t-0", 5))
    with pytest.raises(WalletError, match="ALREADY_EXISTS"):
        await broadcaster.servicer.SubmitTransaction(make_transfer("t-0", 5, value_wei=9).request(), None)  # type: ignore[arg-type]
    with pytest.raises(WalletError, match="ALREADY_EXISTS"):
        await broadcaster.servicer.SubmitTransaction(make_transfer("t-9", 5).request(), None)  # type: ignore[arg-type]


async def test_the_database_gone_for_a_while_loses_nothing(
    service_database: Callable[[str], Any], dev_ca: DevCa, start_anvil: Callable[..., str], tmp_path: Path
) -> None:
    """Connections are cut again and again while a batch is on its way; commits of unknown outcome are repeated."""
    async with rig(service_database, dev_ca, start_anvil(block_time_s=1.0), tmp_path, max_in_flight=20) as made:
        await made.start()
        transfers = [make_transfer(f"t-{nonce}", nonce) for nonce in range(120)]
        await made.sign(*transfers)
        await made.submit(*transfers)
        server = made.own_database.server

        def cut() -> None:
            server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE usename = 'broadcaster' AND datname = '{server.name}'"
            )

        for _ in range(25):
            await asyncio.to_thread(cut)
            await asyncio.sleep(0.1)
        await made.until(FINALIZED, *transfers)
        assert int(await made.rpc("eth_getTransactionCount", _SENDER, "latest"), 16) == 120
        for transfer in transfers:
            ids = [entry_id for entry_id, _ in await made.entries(transfer)]
            assert len([one for one in ids if one.startswith("request")]) == len(
                [one for one in ids if one.startswith("response")]
            )
        seen = [event.cursor for event in await made.until(FINALIZED, *transfers)]
        assert seen == sorted(set(seen))


async def test_a_standby_takes_over(broadcaster: Rig) -> None:
    standby = Rig(broadcaster.settings, broadcaster.evidence, broadcaster.proxies, broadcaster.chain_url)
    await standby.start()
    try:
        first, second = make_transfer("t-0", 0), make_transfer("t-1", 1)
        await broadcaster.sign(first, second)
        # Handed to the standby, done by the leader, seen by both.
        await standby.submit(first)
        await standby.until(INCLUDED, first)
        await broadcaster.kill()
        await standby.submit(second)
        await standby.until(FINALIZED, first, second)
    finally:
        await standby.kill()
        await standby.database.close()


async def test_a_transaction_that_is_mined_already_is_found(broadcaster: Rig) -> None:
    """Somebody else sent the bytes before: the nodes answer "nonce too low", and the block is looked up."""
    await broadcaster.until_watching()
    transfer = make_transfer("t-0", 0)
    await broadcaster.rpc("eth_sendRawTransaction", "0x" + transfer.raw_tx.hex())
    await broadcaster.until_mined(transfer)
    await broadcaster.sign(transfer)
    await broadcaster.submit(transfer)
    await broadcaster.until(FINALIZED, transfer)
    assert dict(await broadcaster.entries(transfer))["response:node-a:1"]["tx_hash"] is None


async def test_what_is_mined_is_not_sent_again_while_the_watch_is_behind(
    service_database: Callable[[str], Any], dev_ca: DevCa, start_anvil: Callable[..., str], tmp_path: Path
) -> None:
    async with rig(
        service_database, dev_ca, start_anvil(block_time_s=0.5), tmp_path, max_in_flight=64, resend_after_s=0.5
    ) as made:
        await made.start()
        await made.until_watching()
        transfers = [make_transfer(f"t-{nonce}", nonce) for nonce in range(40)]
        await made.sign(*transfers)
        # Blocks go on, and none of them can be proven.
        for name in made.proxies.nodes:
            made.proxies.fault(name, methods=["eth_getBlockReceipts"], status=500)
        await made.submit(*transfers)
        await made.until(SUBMITTED, *transfers)
        await made.until_mined(transfers[-1])
        behind = make_transfer("t-40", 40)
        await made.sign(behind)
        # What is new is sent all the same.
        await made.submit(behind)
        await made.until(SUBMITTED, behind)
        await made.until_mined(behind)
        made.proxies.heal()
        await made.until(FINALIZED, *transfers, behind)
        for transfer in (*transfers, behind):
            requests = [entry_id for entry_id, _ in await made.entries(transfer) if entry_id.startswith("request")]
            assert sorted(requests) == ["request:node-a:1", "request:node-b:1"]


async def test_blocks_that_were_passed_are_looked_at_once_for_all_that_they_hold(
    broadcaster: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broadcaster.until_watching()
    transfers = [make_transfer(f"t-{nonce}", nonce) for nonce in range(40)]
    for transfer in transfers:
        await broadcaster.rpc("eth_sendRawTransaction", "0x" + transfer.raw_tx.hex())
    await broadcaster.until_mined(transfers[-1])
    proven: list[bytes] = []

    def count(block: Any, receipts: Any, opaque: Any, block_hash: bytes, tx_hashes: frozenset[bytes]) -> Any:
        proven.append(block_hash)
        return prove_inclusions(block, receipts, opaque, block_hash, tx_hashes)

    monkeypatch.setattr(proving, "prove_inclusions", count)
    await broadcaster.sign(*transfers)
    await broadcaster.submit(*transfers)
    await broadcaster.until(FINALIZED, *transfers)
    # Twice, when the nodes' answers come apart.
    assert len(proven) <= 2 * len(set(proven))


async def test_an_inclusion_that_the_log_refuses_is_decided_anew_and_holds_up_no_other(broadcaster: Rig) -> None:
    refused: list[str] = []

    def name_no_nodes(request: evidence_pb2.AppendEntriesRequest) -> None:
        for entry in request.entries:
            if entry.link_id == "t-0" and entry.kind == "inclusion" and not refused:
                refused.append(entry.entry_id)
                entry.body = canonical_json(json.loads(entry.body) | {"agreeing_nodes": []})

    broadcaster.evidence.before = name_no_nodes
    transfers = [make_transfer(f"t-{nonce}", nonce) for nonce in range(3)]
    await broadcaster.sign(*transfers)
    await broadcaster.submit(*transfers)
    await broadcaster.until(FINALIZED, *transfers)
    assert refused == ["inclusion:1"]
    entered = [entry_id for entry_id, _ in await broadcaster.entries(transfers[0])]
    assert "inclusion:1" not in entered
    assert "inclusion:2" in entered


async def test_the_status_names_nodes_and_no_url(broadcaster: Rig) -> None:
    broadcaster.proxies.fault("node-b", status=500)
    status = await broadcaster.servicer.GetBroadcasterStatus(pb.GetBroadcasterStatusRequest(), None)  # type: ignore[arg-type]
    assert [(node.name, node.answering) for node in status.nodes] == [
        ("node-a", True),
        ("node-b", False),
        ("node-c", True),
    ]
    assert "127.0.0.1" not in str(status)


async def test_the_bundle_of_a_finalized_transfer_verifies(broadcaster: Rig, tmp_path: Path) -> None:
    transfers = [make_transfer(f"t-{nonce}", nonce, gas_limit=30_000) for nonce in range(12)]
    await broadcaster.sign(*transfers)
    await broadcaster.submit(*transfers)
    await broadcaster.until(FINALIZED, *transfers)
    (tmp_path / "trust.json").write_bytes(broadcaster.evidence.log.trust)
    for transfer in transfers[::5]:
        (tmp_path / "bundle.json").write_bytes(await broadcaster.evidence.log.client.bundle(transfer.transfer_id))
        verifier = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tools.verify", str(tmp_path / "bundle.json"), str(tmp_path / "trust.json")),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await verifier.communicate()
        assert verifier.returncode == 0, output.decode()


async def test_a_transfers_spans_are_bounded_and_in_its_trace(broadcaster: Rig) -> None:
    exporter = spans_of_this_process()
    lone = make_transfer("t-0", 0)
    batch = [make_transfer(f"t-{nonce}", nonce) for nonce in (1, 2)]
    await broadcaster.sign(lone, *batch)
    await broadcaster.submit(lone)
    await broadcaster.until(FINALIZED, lone)
    await broadcaster.submit(*batch)
    await broadcaster.until(FINALIZED, *batch)
    spans = exporter.get_finished_spans()
    for transfer in (lone, *batch):
        own = [
            span
            for span in spans
            if f"{span.context.trace_id:032x}" == transfer.traceparent[3:35] and span.name.startswith("broadcaster.")
        ]
        names = Counter(span.name for span in own)
        assert names["broadcaster.submission"] == 1
        assert names["broadcaster.request"] == 2
        assert 1 <= names["broadcaster.inclusion"] <= 3
        submission = next(span for span in own if span.name == "broadcaster.submission")
        assert f"{submission.parent.span_id:016x}" == transfer.traceparent[36:52]
        requests = [span for span in own if span.name == "broadcaster.request"]
        assert {span.attributes["wallet.node.name"] for span in requests} == {"node-a", "node-b"}
        assert all(span.parent.span_id == submission.context.span_id for span in requests)
    shared = [span for span in spans if span.name == "broadcaster.batch"]
    assert [len(span.links) for span in shared] == [2]
    assert "127.0.0.1" not in str([dict(span.attributes) for span in spans])
