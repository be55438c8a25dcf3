"""The spans that the suite has stored, read from tracestore's own tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from tests.integration.suite.running_suite import Suite

CLIENT = SpanMessage.SPAN_KIND_CLIENT
SERVER = SpanMessage.SPAN_KIND_SERVER


@dataclass(frozen=True)
class StoredSpan:
    """`parent_id` is empty for a root; `error` is the attribute error.type, empty where there is none."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_ns: int
    error: str
    links: tuple[tuple[str, str], ...]


def stored_spans(suite: Suite, trace_id: str | None = None) -> list[StoredSpan]:
    """All of them, or those of one trace, by start time."""
    condition = f"trace_id = '\\x{trace_id}'" if trace_id else "true"
    rows = suite.database(
        "SELECT spans.service, encode(scope, 'hex'), encode(span, 'hex') FROM tracestore.spans JOIN tracestore.scopes"
        f" ON scopes.sha256 = spans.scope_sha256 WHERE {condition} ORDER BY start_ns"
    )
    return [_span(*row.split("|")) for row in rows.splitlines()]


def stored_bytes(suite: Suite) -> bytes:
    """Everything that tracestore holds, as it came."""
    rows = suite.database(
        "SELECT encode(scope, 'hex') FROM tracestore.scopes UNION ALL SELECT encode(span, 'hex') FROM tracestore.spans"
    )
    return b"\n".join(bytes.fromhex(row) for row in rows.splitlines())


def call_edges(spans: list[StoredSpan]) -> set[tuple[str, str]]:
    """(caller, callee) of every server span whose parent is a client span of another process."""
    clients = {(span.trace_id, span.span_id): span.service for span in spans if span.kind == CLIENT}
    edges: set[tuple[str, str]] = set()
    for span in spans:
        caller: Any = clients.get((span.trace_id, span.parent_id))
        if span.kind == SERVER and caller is not None:
            edges.add((caller, span.service))
    return edges


def _span(service: str, scope: str, span: str) -> StoredSpan:
    message = SpanMessage.FromString(bytes.fromhex(span))
    resource = ResourceSpans.FromString(bytes.fromhex(scope)).resource
    told = {attribute.key: attribute.value.string_value for attribute in resource.attributes}
    assert told["service.name"] == service
    attributes = {attribute.key: attribute.value.string_value for attribute in message.attributes}
    return StoredSpan(
        service=service,
        name=message.name,
        trace_id=message.trace_id.hex(),
        span_id=message.span_id.hex(),
        parent_id=message.parent_span_id.hex(),
        kind=message.kind,
        start_ns=message.start_time_unix_nano,
        error=attributes.get("error.type", ""),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in message.links),
    )
