"""Stock Jaeger in front of tracestore: its query API tells what tracestore holds; any collector may be missing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from services.runtime.mtls import channel_credentials
from tests.integration.dependencies import run_to_end
from tests.integration.suite.running_suite import Suite, until
from tests.integration.suite.test_trace_tree import Tree, as_tree, declared_tree, leaves_of
from tools.goldenlink.waterfall import Span, as_forest, read_spans
from tools.stack.jaeger import COLLECTOR, COLLECTORS, QUERIES
from tools.stack.options import External, StackOptions
from tools.stack.processes import ProcessIdentity, StackError
from tools.stack.services import SERVICE_NAMES
from tools.stack.stack import Stack

# Spans are stored soon after they end, so that tests need not wait the exporter's five seconds. Unit: ms.
_EXPORT_SOON = {"OTEL_BSP_SCHEDULE_DELAY": "200"}


@pytest.fixture(scope="module")
def suite() -> Iterator[Suite]:
    # Not under pytest's temporary directory: every test run that starts closes that to PostgreSQL's user.
    directory = Path(tempfile.mkdtemp(prefix="goldenlink-jaeger-"))
    directory.chmod(0o755)
    options = StackOptions(
        block_time_s=0.5,
        supervised=True,
        jaeger=True,
        environment=dict.fromkeys(SERVICE_NAMES, _EXPORT_SOON),
        external=External(),
    )
    stack = Stack(directory / "stack", options)
    try:
        run_to_end(stack.start())
        started = [ProcessIdentity.from_record(stack.directory / "run" / name) for name in (*COLLECTORS, *QUERIES)]
        try:
            yield Suite(stack)
        finally:
            run_to_end(stack.stop())
        assert len(started) == 5
        assert not any(process is None or process.is_alive() for process in started)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def healed(suite: Suite) -> Iterator[None]:
    yield
    for name in COLLECTORS:
        if not suite.stack.is_running(name):
            suite.launch(name)


def ask(suite: Suite, query: str, path: str, **parameters: str) -> Any:
    """Jaeger's answer; None where it knows no such trace."""
    url = suite.stack.record["jaeger"]["query_urls"][query]
    reply = httpx.get(f"{url}/api/{path}", params=parameters, trust_env=False, timeout=30.0)
    return None if reply.status_code == 404 else reply.raise_for_status().json()


def shown(suite: Suite, trace_id: str, query: str = QUERIES[0]) -> list[Span]:
    """A trace as Jaeger has it, without what it says of a span that begins after its parent's end."""
    answer = ask(suite, query, f"v3/traces/{trace_id}", raw_traces="true")
    return read_spans(answer["result"]) if answer is not None else []


def whole_tree(suite: Suite, transfer: dict[str, Any]) -> list[Span]:
    """The spans that Jaeger shows of a transfer of a fresh account, once they are the declared tree and all that the
    log's entries name."""
    link = suite.link(transfer)
    inclusions = [entry for entry in link["entries"] if entry["kind"] == "inclusion"]
    responses = {entry["at"] for entry in link["entries"] if entry["kind"] == "response"}
    expected: list[Tree] = [declared_tree(len(responses), len(inclusions))]
    named = {leaf["span_id"] for leaf in leaves_of(link)}

    def look() -> list[Span] | None:
        spans = shown(suite, transfer["trace_id"])
        is_whole = [as_tree(root) for root in as_forest(spans)] == expected
        return spans if is_whole and named <= {span.span_id for span in spans} else None

    return until(look, f"Jaeger shows all of {transfer['id']}", 60.0)


def export_nothing(address: str, credentials: grpc.ChannelCredentials) -> grpc.StatusCode:
    with grpc.secure_channel(address, credentials, (("grpc.ssl_target_name_override", COLLECTOR),)) as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export", None, None)
        try:
            return export.with_call(b"", timeout=10.0)[1].code()
        except grpc.RpcError as error:
            return error.code()


def test_jaeger_shows_a_transfer_as_tracestore_has_it(suite: Suite) -> None:
    transfer = suite.finalized(suite.make_account())
    trace_id = transfer["trace_id"]
    whole_tree(suite, transfer)
    stored = sorted(read_spans(suite.get(f"/v1/traces/{trace_id}")), key=lambda span: span.span_id)
    for query in QUERIES:
        assert sorted(shown(suite, trace_id, query), key=lambda span: span.span_id) == stored

    # The API of its UI rounds to microseconds.
    (trace,) = ask(suite, QUERIES[0], f"traces/{trace_id}")["data"]
    assert {
        (
            trace["processes"][span["processID"]]["serviceName"],
            span["operationName"],
            span["spanID"],
            *(parent["spanID"] for parent in span["references"] if parent["refType"] == "CHILD_OF"),
            span["startTime"],
        )
        for span in trace["spans"]
    } == {(one.service, one.name, one.span_id, *filter(None, [one.parent_id]), one.start_ns // 1000) for one in stored}
    assert set(ask(suite, QUERIES[1], "services")["data"]) >= {one.service for one in stored}
    assert "signer.signature" in ask(suite, QUERIES[1], "services/signer/operations")["data"]

    suite.finalized(suite.make_account())
    tags = json.dumps({"wallet.link.id": transfer["id"]})
    found = ask(suite, QUERIES[0], "traces", service="signer", operation="signer.signature", tags=tags)["data"]
    assert [one["traceID"] for one in found] == [trace_id]
    assert len(found[0]["spans"]) == len(stored)


def test_transfers_while_two_of_three_collectors_are_killed_are_shown_whole(suite: Suite) -> None:
    accounts = [suite.make_account() for _ in range(4)]
    transfers = [suite.send(account) for account in accounts[:2]]
    suite.kill(COLLECTORS[0])
    transfers += [suite.send(account) for account in accounts[2:]]
    suite.kill(COLLECTORS[1])
    for transfer in suite.until_ended(transfers):
        whole_tree(suite, transfer)


def test_transfers_while_no_collector_lives_are_shown_whole_once_one_is_back(suite: Suite) -> None:
    accounts = [suite.make_account() for _ in range(2)]
    for name in COLLECTORS:
        suite.kill(name)
    transfers = suite.until_ended([suite.send(account) for account in accounts])
    assert not any(shown(suite, transfer["trace_id"]) for transfer in transfers)
    suite.launch(COLLECTORS[2])
    for transfer in transfers:
        whole_tree(suite, transfer)


def test_collectors_serve_the_strategies_and_take_spans_from_certificates_of_the_suite_only(suite: Suite) -> None:
    jaeger = suite.stack.record["jaeger"]
    for url in jaeger["sampling_urls"].values():
        reply = httpx.get(url, params={"service": "gateway"}, trust_env=False).json()
        assert reply["probabilisticSampling"]["samplingRate"] == 1
    for address in jaeger["collectors"].values():
        service = channel_credentials(suite.stack.foundation.tls / "signer")
        assert export_nothing(address, service) is grpc.StatusCode.OK
        stranger = grpc.ssl_channel_credentials((suite.stack.foundation.tls / "signer" / "ca.pem").read_bytes())
        assert export_nothing(address, stranger) is grpc.StatusCode.UNAVAILABLE


def test_jaeger_without_a_store_is_refused() -> None:
    with pytest.raises(StackError, match="tracing and tracestore"):
        StackOptions(jaeger=True, tracing=False, external=External())
