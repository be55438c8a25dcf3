"""What every writer of the log rests on, of the real service and of the fake that stands in for it elsewhere."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from protos.wallet.v1 import evidence_pb2 as pb
from protos.wallet.v1 import evidence_pb2_grpc
from services.core.errors import Reason, WalletError
from services.runtime.server import GrpcServer
from services.runtime.settings import ServiceSettings
from tests.fakes.evidence import FakeEvidence
from tests.integration.running_evidence import Client, RunningLog, calling, entry
from tests.unit.verify import forge


@pytest.fixture(params=["real", "fake"])
async def client(
    request: pytest.FixtureRequest,
    dev_ca: Callable[[str], Path],
    tmp_path: Path,
) -> AsyncIterator[Client]:
    if request.param == "real":
        database = request.getfixturevalue("service_database")("evidence")
        async with RunningLog(database.settings, dev_ca, tmp_path).running() as log:
            yield log.client
        return
    server = GrpcServer("evidence", ServiceSettings(listen="127.0.0.1:0", tls_dir=dev_ca("evidence")), [])
    evidence_pb2_grpc.add_EvidenceServicer_to_server(FakeEvidence(), server.grpc)
    async with server, calling(dev_ca, server.port) as called:
        yield called


def now(draft: forge.Draft) -> forge.Draft:
    """The same entry, as if it happened now."""
    for name in ("requested_at", "sent_at", "received_at"):
        if name in draft.body:
            draft.body[name] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return draft


async def append_draft(client: Client, entry_id: str, draft: forge.Draft) -> pb.AppendedEntry:
    return await client.append(entry("t-1", entry_id, rfc8785.dumps(draft.body), draft.kind, forge.TRACE_ID))


async def refusal(call: Any) -> WalletError:
    with pytest.raises(WalletError) as raised:
        await call
    return raised.value


async def test_the_first_body_of_an_entry_id_wins_for_ever(client: Client) -> None:
    first = await client.append(entry("a", "k:1", {"n": 1}))
    again = await client.append(entry("a", "k:1", {"n": 1}))
    assert (again.index, again.step, again.leaf_hash, again.at) == (first.index, first.step, first.leaf_hash, first.at)
    assert (first.already_stored, again.already_stored) == (False, True)
    assert (await refusal(client.append(entry("a", "k:1", {"n": 2})))).reason is Reason.ENTRY_CONFLICT
    (conflict,) = await client.append_all(entry("a", "k:1", {"n": 2}))
    assert conflict.failure.error.reason == "ENTRY_CONFLICT"
    assert json.loads(conflict.failure.stored_body) == {"n": 1}
    # An entry id is the link's own.
    assert (await client.append(entry("b", "k:1", {"n": 2}))).index == first.index + 1


async def test_one_result_per_item_in_order_and_no_item_aborts_its_neighbours(client: Client) -> None:
    results = await client.append_all(
        entry("a", "k:1"), entry("a b", "k:1"), entry("a", "k:2"), entry("a", "k:1"), entry("b", "k:1", kind="nothing")
    )
    assert [one.WhichOneof("result") for one in results] == ["appended", "failure", "appended", "appended", "failure"]
    assert [(one.appended.index, one.appended.step) for one in (results[0], results[2], results[3])] == [
        (0, 0),
        (1, 1),
        (0, 0),
    ]
    assert results[1].failure.error.details["field"] == "link_id"
    assert results[4].failure.error.details["field"] == "kind"


async def test_a_link_is_read_back_as_it_was_written(client: Client) -> None:
    for number in range(3):
        await client.append(entry("a", f"k:{number}", {"n": number}))
    link = await client.stub.GetLink(pb.GetLinkRequest(link_id="a"))
    before = ""
    for number, one in enumerate(link.entries):
        leaf = json.loads(one.leaf)
        assert (one.step, one.entry_id, json.loads(one.body), leaf["step"]) == (
            number,
            f"k:{number}",
            {"n": number},
            number,
        )
        assert leaf["prev"] == before
        assert leaf["body"] == "0x" + sha256(one.salt + one.body).hexdigest()
        before = "0x" + sha256(b"\0" + one.leaf).hexdigest()
    assert (await refusal(client.stub.GetLink(pb.GetLinkRequest(link_id="b")))).reason is Reason.NOT_FOUND


async def test_a_transfer_goes_by_the_grammar(client: Client) -> None:
    tx = forge.Tx()
    signed = forge.signature(tx)
    assert (await refusal(append_draft(client, "s", signed))).reason is Reason.OUT_OF_ORDER
    await append_draft(client, "i", now(forge.intent(tx)))
    assert (await refusal(append_draft(client, "r", now(forge.request(signed))))).reason is Reason.OUT_OF_ORDER
    await append_draft(client, "f", forge.failed_signature())
    await append_draft(client, "s", signed)
    await append_draft(client, "r", now(forge.request(signed)))
    late = now(forge.response(signed))
    late.body["received_at"] = (datetime.now(UTC) + timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert (await refusal(append_draft(client, "a", late))).reason is Reason.CLOCK_SKEW
    await append_draft(client, "a", now(forge.response(signed)))
    timestamp = int(datetime.now(UTC).timestamp())
    block = forge.Block(forge.raw_tx(signed), timestamp=timestamp)
    one_node = await refusal(append_draft(client, "x", block.inclusion("safe", 0, ("node-a",))))
    assert (one_node.reason, one_node.details["field"]) == (Reason.INVALID_REQUEST, "agreeing_nodes")
    await append_draft(client, "n:1", block.inclusion("included", 0, ("node-a",)))
    assert (await client.stub.GetLink(pb.GetLinkRequest(link_id="t-1"))).state == "INCLUDED"
    await append_draft(client, "n:2", block.inclusion("finalized", 0))
    assert (
        await refusal(append_draft(client, "r:2", now(forge.request(signed, attempt=2))))
    ).reason is Reason.LINK_CLOSED
    # A retry of what is stored is answered, closed or not.
    assert (await append_draft(client, "s", signed)).already_stored
    link = await client.stub.GetLink(pb.GetLinkRequest(link_id="t-1"))
    assert (link.state, len(link.entries)) == ("FINALIZED", 7)


async def test_a_link_has_one_trace_id(client: Client) -> None:
    tx = forge.Tx()
    await append_draft(client, "i", now(forge.intent(tx)))
    other = entry("t-1", "s", rfc8785.dumps(forge.signature(tx).body), "signature", "1" * 32)
    assert (await refusal(client.append(other))).details["field"] == "trace_id"


async def test_the_status_says_that_it_appends(client: Client) -> None:
    await client.append(entry("a"))
    status = await client.status()
    assert (status.appending, list(status.missing), status.tree_size) == (True, [], 1)
