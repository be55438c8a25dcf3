from __future__ import annotations

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from services.gateway.otlp import trace_document

TRACE, SPAN = bytes(range(1, 17)), bytes(range(1, 9))


def test_ids_are_hex_and_enums_are_numbers_also_in_links() -> None:
    stored = ResourceSpans()
    span = stored.scope_spans.add().spans.add(name="x", trace_id=TRACE, span_id=SPAN, parent_span_id=SPAN, kind=3)
    span.links.add(trace_id=TRACE, span_id=SPAN)
    span.start_time_unix_nano = 1_700_000_000_000_000_000
    (found,) = trace_document([stored.SerializeToString()])["resourceSpans"]
    assert found["scopeSpans"][0]["spans"][0] == {
        "name": "x",
        "traceId": TRACE.hex(),
        "spanId": SPAN.hex(),
        "parentSpanId": SPAN.hex(),
        "kind": 3,
        "startTimeUnixNano": "1700000000000000000",
        "links": [{"traceId": TRACE.hex(), "spanId": SPAN.hex()}],
    }
