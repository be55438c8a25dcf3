"""OTLP requests into rows, one a span, and rows back into OTLP. Pure: no I/O.

Span bytes are protobuf's serialisation of the span as it came in, unknown fields included.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

_NO_TRACE_ID = bytes(16)
_NO_SPAN_ID = bytes(8)
_MAX_START_NS = 2**63 - 1


class SpanRow(NamedTuple):
    """One stored span. Rows sort by their identity (trace_id, span_id, sha256)."""

    trace_id: bytes
    span_id: bytes
    sha256: bytes
    start_ns: int
    service: str
    name: str
    scope_sha256: bytes
    span: bytes


@dataclass
class SpanBatch:
    """What one Export call brought: rows, the scopes they name, and the spans that were refused."""

    rows: list[SpanRow] = field(default_factory=list)
    # SHA-256 → a serialised ResourceSpans with one ScopeSpans and no spans.
    scopes: dict[bytes, bytes] = field(default_factory=dict)
    size_bytes: int = 0
    rejected: int = 0
    rejection: str = ""


def split_request(request: ExportTraceServiceRequest) -> SpanBatch:
    """Every span of the request as a row; malformed ones are counted, with the first one's rule."""
    batch = SpanBatch()
    for resource_spans in request.resource_spans:
        service = _service_name(resource_spans)
        for scope_spans in resource_spans.scope_spans:
            scope = _scope_without_spans(resource_spans, scope_spans)
            scope_sha256 = hashlib.sha256(scope).digest()
            batch.scopes[scope_sha256] = scope
            for span in scope_spans.spans:
                broken_rule = _broken_rule(span)
                if broken_rule:
                    batch.rejected += 1
                    batch.rejection = batch.rejection or broken_rule
                    continue
                span_bytes = span.SerializeToString()
                batch.size_bytes += len(span_bytes)
                batch.rows.append(
                    SpanRow(
                        span.trace_id,
                        span.span_id,
                        hashlib.sha256(span_bytes).digest(),
                        span.start_time_unix_nano,
                        service,
                        _text(span.name),
                        scope_sha256,
                        span_bytes,
                    )
                )
    return batch


def join_span(scope: bytes, span: bytes) -> bytes:
    """A serialised ResourceSpans that holds this one span."""
    resource_spans = ResourceSpans.FromString(scope)
    resource_spans.scope_spans[0].spans.add().MergeFromString(span)
    return resource_spans.SerializeToString()


def _broken_rule(span: Span) -> str:
    # W3C Trace Context §3.2.2: ids of 16 and 8 bytes, not all zero.
    if len(span.trace_id) != 16 or span.trace_id == _NO_TRACE_ID:
        return "trace_id: the rule is that it is 16 bytes, not all zero"
    if len(span.span_id) != 8 or span.span_id == _NO_SPAN_ID:
        return "span_id: the rule is that it is 8 bytes, not all zero"
    if span.start_time_unix_nano > _MAX_START_NS:
        return "start_time_unix_nano: the rule is that it is below 2**63"
    return ""


def _scope_without_spans(resource_spans: ResourceSpans, scope_spans: ScopeSpans) -> bytes:
    scope = ScopeSpans(schema_url=scope_spans.schema_url)
    if scope_spans.HasField("scope"):
        scope.scope.CopyFrom(scope_spans.scope)
    head = ResourceSpans(schema_url=resource_spans.schema_url, scope_spans=[scope])
    if resource_spans.HasField("resource"):
        head.resource.CopyFrom(resource_spans.resource)
    return head.SerializeToString()


def _service_name(resource_spans: ResourceSpans) -> str:
    for attribute in resource_spans.resource.attributes:
        if attribute.key == "service.name":
            return _text(attribute.value.string_value)
    return ""


def _text(value: str) -> str:
    # PostgreSQL's text holds no NUL; the span's bytes keep it.
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
