"""OTLP requests into rows: what is kept is what came, and what is refused is named."""

from __future__ import annotations

import hashlib

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from services.core.errors import Reason, WalletError
from services.tracestore.otlp import MAX_RECORD_BYTES, head_attributes, join_records
from services.tracestore.spans import SpanBatch, SpanSplitter

TRACE, SPAN = bytes(range(1, 17)), bytes(range(1, 9))


def field(number: int, content: bytes) -> bytes:
    """Source: Protocol Buffers, Encoding."""
    prefix, length = bytearray((number << 3 | 2,)), len(content)
    while length > 127:
        prefix.append(length & 127 | 128)
        length >>= 7
    return bytes(prefix) + bytes((length,)) + content


RESOURCE = field(1, field(1, field(1, b"service.name") + field(2, field(1, b"signer"))))
IDS = field(1, TRACE) + field(2, SPAN)


def request(*spans: bytes, resource: bytes = RESOURCE) -> bytes:
    return field(1, resource + field(2, b"".join(field(2, span) for span in spans)))


def split(*spans: bytes, resource: bytes = RESOURCE) -> SpanBatch:
    return SpanSplitter().split(request(*spans, resource=resource))


@pytest.mark.parametrize(
    "span",
    [
        # As no encoder of ours writes it: fields out of order, a length in more bytes than it needs, a field twice.
        field(5, b"late") + field(2, SPAN) + b"\x0a\x90\x00" + TRACE + field(5, b"name"),
        # A field of a later version.
        IDS + b"\xc2\x3e\x05later",
        # Not UTF-8.
        IDS + field(5, b"\xff\xfe") + field(9, field(1, b"\xc3") + field(2, field(1, b"\xed\xa0\x80"))),
        IDS,
    ],
)
def test_the_bytes_of_a_span_are_those_that_came(span: bytes) -> None:
    batch = split(span)
    (row,) = batch.rows
    assert (row.span, row.sha256) == (span, hashlib.sha256(span).digest())
    (head,) = batch.heads.values()
    assert request(span) == field(1, join_records(head, [row.span]))


def test_a_text_that_is_no_utf_8_has_a_name_to_search_by() -> None:
    (row,) = split(IDS + field(5, b"caf\xe9 \x00" + b"x" * 1_000)).rows
    assert row.name == "caf\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}" + "x" * 249


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (b"\x0a\x10short", "OTLP Span"),
        (IDS + field(9, b"\x0a\x7fkey"), "OTLP Span"),
        (IDS + field(11, b"\x12"), "OTLP Span"),
        (IDS + field(13, b"\x0a"), "OTLP Span"),
        # The name as a number: skipped by one parser, an error to the next.
        (IDS + b"\x28\x01", "OTLP Span"),
        (IDS + field(13, field(1, b"xyz") + field(2, SPAN)), "trace_id"),
        (IDS + field(4, b"short"), "parent_span_id"),
        (field(1, bytes(16)) + field(2, SPAN), "trace_id"),
        (field(1, TRACE) + field(2, bytes(8)), "span_id"),
        (field(1, TRACE), "span_id"),
        (IDS + b"\x39" + b"\xff" * 8, "start_time_unix_nano"),
        (IDS + field(5, b"x" * MAX_RECORD_BYTES), f"at most {MAX_RECORD_BYTES} bytes"),
    ],
)
def test_a_malformed_span_is_refused_by_its_rule_and_its_neighbours_are_kept(broken: bytes, rule: str) -> None:
    batch = split(IDS, broken, IDS + field(5, b"other"))
    assert [row.span for row in batch.rows] == [IDS, IDS + field(5, b"other")]
    assert batch.rejected == 1
    assert rule in batch.rejection


@pytest.mark.parametrize(
    "malformed",
    [b"\xff", field(1, b"\x0a\x05x"), field(1, RESOURCE + field(2, b"\x12\xff")), request(resource=b"\x0a")],
)
def test_a_malformed_request_is_refused_as_a_whole(malformed: bytes) -> None:
    with pytest.raises(WalletError) as raised:
        SpanSplitter().split(malformed)
    assert raised.value.reason is Reason.INVALID_REQUEST
    assert "ExportTraceServiceRequest" in raised.value.message


@pytest.mark.parametrize(("start_ns", "end_ns", "duration_ns"), [(0, 5, 5), (2**63 - 1, 2**63 - 1, 0), (7, 0, 0)])
def test_spans_of_1970_and_of_the_far_future_and_without_an_end_are_kept(
    start_ns: int, end_ns: int, duration_ns: int
) -> None:
    span = Span(trace_id=TRACE, span_id=SPAN, start_time_unix_nano=start_ns, end_time_unix_nano=end_ns)
    (row,) = split(span.SerializeToString()).rows
    assert (row.start_ns, row.duration_ns) == (start_ns, duration_ns)


def test_a_resource_in_two_parts_is_one() -> None:
    other = field(1, field(1, field(1, b"host.name") + field(2, field(1, b"h"))))
    (head,) = split(IDS, resource=other + RESOURCE).heads.values()
    assert head_attributes(head) == {(b"host.name", b"h"), (b"service.name", b"signer")}


def test_each_scope_of_a_resource_keeps_its_own_spans() -> None:
    asked = ExportTraceServiceRequest()
    for service in ("signer", "gateway"):
        resource_spans = asked.resource_spans.add(schema_url=f"https://{service}")
        resource_spans.resource.attributes.add(key="service.name").value.string_value = service
        for scope in ("a", "b"):
            scope_spans = resource_spans.scope_spans.add(schema_url=f"https://{scope}")
            scope_spans.scope.name = scope
            scope_spans.spans.add(trace_id=TRACE, span_id=SPAN, name=f"{service} {scope}")
    batch = SpanSplitter().split(asked.SerializeToString())
    joined = [ResourceSpans.FromString(join_records(batch.heads[row.scope_sha256], [row.span])) for row in batch.rows]
    found = [
        (one.schema_url, one.scope_spans[0].schema_url, one.scope_spans[0].scope.name, one.scope_spans[0].spans[0].name)
        for one in joined
    ]
    assert found == [
        (f"https://{service}", f"https://{scope}", scope, f"{service} {scope}")
        for service in ("signer", "gateway")
        for scope in ("a", "b")
    ]
    assert [row.service for row in batch.rows] == ["signer", "signer", "gateway", "gateway"]
