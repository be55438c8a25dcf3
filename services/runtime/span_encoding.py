"""Spans as OTLP requests, by an encoder that costs a tenth of the SDK's.

Most of what a span costs is its attributes, and most attributes repeat: each is encoded once, and its bytes are kept.
Protobuf allows it: the bytes of a message are those of its fields, one behind the other.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanKind, StatusCode
from opentelemetry.util.types import AnyValue

# Source: opentelemetry/proto/trace/v1/trace.proto, the numbers of the fields; each holds a message.
_SPANS_OF_SCOPE, _SCOPES_OF_RESOURCE, _RESOURCES = 2, 2, 1
_ATTRIBUTES, _LINKS = 9, 13
# Tag and length of the ids, tag of the times, which are fixed64.
_TRACE_ID, _SPAN_ID, _PARENT_SPAN_ID = b"\x0a\x10", b"\x12\x08", b"\x22\x08"
_START_TIME, _END_TIME = 0x39, 0x41
_TIMES = struct.Struct("<BQBQ")
# By id, with what has it: hashing a resource costs more than encoding it.
_heads: dict[int, tuple[object, bytes]] = {}
_MAX_HEADS = 256
_KEPT = frozenset({str, bool, int, float})
_KINDS: dict[SpanKind, trace_pb2.Span.SpanKind.ValueType] = {
    SpanKind.INTERNAL: trace_pb2.Span.SPAN_KIND_INTERNAL,
    SpanKind.SERVER: trace_pb2.Span.SPAN_KIND_SERVER,
    SpanKind.CLIENT: trace_pb2.Span.SPAN_KIND_CLIENT,
    SpanKind.PRODUCER: trace_pb2.Span.SPAN_KIND_PRODUCER,
    SpanKind.CONSUMER: trace_pb2.Span.SPAN_KIND_CONSUMER,
}


def encode_spans(spans: Sequence[ReadableSpan]) -> bytes:
    """A serialised ExportTraceServiceRequest; parsed, it equals what the SDK's exporter makes of these spans."""
    # By identity: hashing a resource costs more than encoding a span, and a process has one.
    groups: dict[tuple[int, int], tuple[ReadableSpan, list[bytes]]] = {}
    for span in spans:
        place = id(span.resource), id(span.instrumentation_scope)
        if place not in groups:
            groups[place] = span, []
        groups[place][1].append(_field(_SPANS_OF_SCOPE, _span(span)))
    scopes: dict[int, tuple[Resource, list[bytes]]] = {}
    for (resource_id, _), (first, encoded) in groups.items():
        _, of_resource = scopes.setdefault(resource_id, (first.resource, []))
        head = _kept_head(first.instrumentation_scope, _scope)
        of_resource.append(_field(_SCOPES_OF_RESOURCE, head + b"".join(encoded)))
    return b"".join(
        _field(_RESOURCES, _kept_head(resource, _resource) + b"".join(encoded)) for resource, encoded in scopes.values()
    )


def _kept_head(described: Resource | InstrumentationScope | None, encode: Callable[[Any], bytes]) -> bytes:
    """`encode(described)`, once: a process has one resource and few scopes, and small groups of spans repeat them."""
    kept = _heads.get(id(described))
    if kept is None or kept[0] is not described:
        if len(_heads) >= _MAX_HEADS:
            _heads.clear()
        kept = _heads[id(described)] = (described, encode(described))
    return kept[1]


def _resource(resource: Resource) -> bytes:
    message = ResourceMessage(attributes=_attributes(resource.attributes))
    return trace_pb2.ResourceSpans(resource=message, schema_url=resource.schema_url).SerializeToString()


def _scope(scope: InstrumentationScope | None) -> bytes:
    if scope is None:
        return trace_pb2.ScopeSpans(scope=common_pb2.InstrumentationScope()).SerializeToString()
    message = common_pb2.InstrumentationScope(
        name=scope.name, version=scope.version or "", attributes=_attributes(scope.attributes)
    )
    return trace_pb2.ScopeSpans(scope=message, schema_url=scope.schema_url or "").SerializeToString()


def _span(span: ReadableSpan) -> bytes:
    context, parent, status = span.context, span.parent, span.status
    is_remote = parent is not None and parent.is_remote
    parts = [
        _TRACE_ID,
        context.trace_id.to_bytes(16, "big"),
        _SPAN_ID,
        context.span_id.to_bytes(8, "big"),
        _TIMES.pack(_START_TIME, span.start_time or 0, _END_TIME, span.end_time or 0),
        _kept_description(span.name, span.kind, is_remote, status.status_code, status.description or ""),
    ]
    if parent is not None:
        parts += _PARENT_SPAN_ID, parent.span_id.to_bytes(8, "big")
    for name, value in (span.attributes or {}).items():
        parts.append((_kept_attribute if type(value) in _KEPT else _attribute)(name, value))
    parts += [_link(link) for link in span.links]
    if span.events or context.trace_state:
        parts.append(_rarities(span))
    return b"".join(parts)


@lru_cache(maxsize=1_024)
def _kept_description(name: str, kind: SpanKind, is_remote: bool, code: StatusCode, description: str) -> bytes:
    """What spans of the same step have in common."""
    status = trace_pb2.Status(code=trace_pb2.Status.StatusCode.ValueType(code.value), message=description)
    return trace_pb2.Span(name=name, kind=_KINDS[kind], flags=_flags(is_remote), status=status).SerializeToString()


def _rarities(span: ReadableSpan) -> bytes:
    return trace_pb2.Span(
        trace_state=span.context.trace_state.to_header(), events=[_event(event) for event in span.events]
    ).SerializeToString()


def _event(event: Event) -> trace_pb2.Span.Event:
    return trace_pb2.Span.Event(
        name=event.name,
        time_unix_nano=event.timestamp,
        attributes=_attributes(event.attributes),
        dropped_attributes_count=event.dropped_attributes,
    )


def _link(link: Link) -> bytes:
    context = link.context
    if not link.attributes and not link.dropped_attributes:
        return _kept_link(context.trace_id, context.span_id, context.is_remote)
    message = trace_pb2.Span.Link(
        trace_id=context.trace_id.to_bytes(16, "big"),
        span_id=context.span_id.to_bytes(8, "big"),
        attributes=_attributes(link.attributes),
        dropped_attributes_count=link.dropped_attributes,
        flags=_flags(context.is_remote),
    )
    return _field(_LINKS, message.SerializeToString())


@lru_cache(maxsize=256)  # the spans of a batch link to the same one
def _kept_link(trace_id: int, span_id: int, is_remote: bool) -> bytes:
    message = trace_pb2.Span.Link(
        trace_id=trace_id.to_bytes(16, "big"), span_id=span_id.to_bytes(8, "big"), flags=_flags(is_remote)
    )
    return _field(_LINKS, message.SerializeToString())


def _flags(is_remote: bool) -> int:
    remote = trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK if is_remote else 0
    return trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK | remote


def _attributes(attributes: Mapping[str, AnyValue] | None) -> list[common_pb2.KeyValue]:
    return [common_pb2.KeyValue(key=name, value=_any_value(value)) for name, value in (attributes or {}).items()]


def _attribute(name: str, value: AnyValue) -> bytes:
    if type(value) is str:
        # The usual one, without the messages: KeyValue {key = 1, value = 2: AnyValue {string_value = 1}}.
        return _field(_ATTRIBUTES, _field(1, name.encode()) + _field(2, _field(1, value.encode())))
    return _field(_ATTRIBUTES, common_pb2.KeyValue(key=name, value=_any_value(value)).SerializeToString())


# By type too: 1, 1.0 and True are one key to a dictionary.
_kept_attribute = lru_cache(maxsize=4_096, typed=True)(_attribute)


def _any_value(value: AnyValue) -> common_pb2.AnyValue:
    match value:
        case str():
            return common_pb2.AnyValue(string_value=value)
        case bool():
            return common_pb2.AnyValue(bool_value=value)
        case int():
            return common_pb2.AnyValue(int_value=value)
        case float():
            return common_pb2.AnyValue(double_value=value)
        case bytes():
            return common_pb2.AnyValue(bytes_value=value)
        case None:
            return common_pb2.AnyValue()
        case Mapping():
            return common_pb2.AnyValue(kvlist_value=common_pb2.KeyValueList(values=_attributes(value)))
        case _:
            return common_pb2.AnyValue(array_value=common_pb2.ArrayValue(values=[_any_value(one) for one in value]))


def _field(number: int, content: bytes) -> bytes:
    """A field that holds a message or a text. Source: Protocol Buffers, Encoding: tag and length are varints."""
    length = len(content)
    if length < 1 << 7:
        return bytes((number << 3 | 2, length)) + content
    if length < 1 << 14:
        return bytes((number << 3 | 2, length & 127 | 128, length >> 7)) + content
    prefix = bytearray((number << 3 | 2,))
    while length > 127:
        prefix.append(length & 127 | 128)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + content
