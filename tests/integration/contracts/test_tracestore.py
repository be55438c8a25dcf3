"""What gateway and every exporter rest on in `tracestore`."""

from __future__ import annotations

import secrets

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from protos.wallet.v1.tracestore_pb2 import GetTraceRequest
from tests.integration.contracts.peers import Peers, refusal


def span(trace_id: bytes, start_ns: int) -> Span:
    return Span(
        trace_id=trace_id,
        span_id=secrets.token_bytes(8),
        name=f"at {start_ns}",
        start_time_unix_nano=start_ns,
        end_time_unix_nano=start_ns + 1,
    )


def exported(*spans: Span) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.add(key="service.name").value.string_value = "gateway"
    resource_spans.scope_spans.add(spans=spans).scope.name = "contract"
    return request


async def stored(peers: Peers, trace_id: bytes) -> list[ResourceSpans]:
    reply = await peers.tracestore.GetTrace(GetTraceRequest(trace_id=trace_id.hex()))
    assert reply.trace_id == trace_id.hex()
    return [ResourceSpans.FromString(one) for one in reply.resource_spans]


async def test_what_was_acknowledged_is_read_back_by_start_time(peers: Peers) -> None:
    trace_id, other = secrets.token_bytes(16), secrets.token_bytes(16)
    late, early, middle = span(trace_id, 3), span(trace_id, 1), span(trace_id, 2)
    assert not (await peers.otlp.Export(exported(late, span(other, 1), early))).HasField("partial_success")
    await peers.otlp.Export(exported(middle))
    found = await stored(peers, trace_id)
    # One span each, under its own resource and scope.
    assert found == [exported(one).resource_spans[0] for one in (early, middle, late)]
    assert len(await stored(peers, other)) == 1


async def test_a_span_that_is_sent_again_is_there_once(peers: Peers) -> None:
    trace_id = secrets.token_bytes(16)
    request = exported(span(trace_id, 1), span(trace_id, 2))
    for _ in range(2):
        await peers.otlp.Export(request)
    assert len(await stored(peers, trace_id)) == 2


async def test_malformed_spans_are_counted_and_the_others_kept(peers: Peers) -> None:
    trace_id = secrets.token_bytes(16)
    reply = await peers.otlp.Export(exported(span(bytes(16), 1), span(trace_id, 1), span(b"short", 1)))
    assert reply.partial_success.rejected_spans == 2
    assert reply.partial_success.error_message
    assert len(await stored(peers, trace_id)) == 1


async def test_an_unknown_trace_is_not_found_and_a_wrong_id_is_refused(peers: Peers) -> None:
    get = peers.tracestore.GetTrace
    assert (await refusal(get(GetTraceRequest(trace_id=secrets.token_hex(16)))))[0] == "NOT_FOUND"
    for wrong in ("", "A" * 32, "a" * 31):
        assert await refusal(get(GetTraceRequest(trace_id=wrong))) == ("INVALID_REQUEST", "trace_id")
