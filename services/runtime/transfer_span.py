"""Spans in a transfer's own trace, each handed on whole when it ends.

Without locks and limits they cost a tenth of what the SDK's own do: one task writes a span, and a batch has hundreds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from time import time_ns

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
)
from opentelemetry.util.types import AttributeValue

from services.runtime import attributes as names

# What is done for a transfer is always sampled, whatever its first caller's flag said.
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)


def transfer_parent(trace_id: int, span_id: int) -> SpanContext:
    """Where a transfer's trace came from, as the parent of a span of ours."""
    return SpanContext(trace_id, span_id, True, _SAMPLED)


def stored_parent(traceparent: str) -> SpanContext:
    """The same of a row's traceparent, which was checked before it was stored."""
    return transfer_parent(int(traceparent[3:35], 16), int(traceparent[36:52], 16))


class TransferSpan:
    """A span that has begun."""

    __slots__ = (
        "_attributes",
        "_kind",
        "_links",
        "_name",
        "_parent",
        "_scope",
        "_sdk",
        "_start_ns",
        "_status",
        "context",
    )

    def __init__(
        self,
        sdk: SdkTracer | None,
        scope: InstrumentationScope,
        name: str,
        kind: SpanKind,
        parent: SpanContext,
        links: Sequence[Link],
        attributes: Mapping[str, AttributeValue],
    ) -> None:
        self._sdk = sdk
        self._scope = scope
        self._name = name
        self._kind = kind
        self._parent = parent
        self._links = links
        self._attributes = dict(attributes)
        self._status = _UNSET
        self._start_ns = time_ns()
        # Without the SDK nothing is recorded, and the ids that are handed on are the parent's.
        self.context = parent
        if sdk is not None:
            self.context = SpanContext(parent.trace_id, sdk.id_generator.generate_span_id(), False, _SAMPLED)

    @property
    def is_recording(self) -> bool:
        return self._sdk is not None

    @property
    def entry_ids(self) -> tuple[str, str]:
        """(trace_id, span_id) in hex for an entry that this span writes."""
        return f"{self.context.trace_id:032x}", f"{self.context.span_id:016x}"

    def child(self, name: str, kind: SpanKind, attributes: Mapping[str, AttributeValue]) -> TransferSpan:
        return TransferSpan(self._sdk, self._scope, name, kind, self.context, (), attributes)

    def as_current(self) -> AbstractContextManager[Span]:
        return trace.use_span(NonRecordingSpan(self.context))

    def set_attribute(self, name: str, value: AttributeValue) -> None:
        self._attributes[name] = value

    def set_attributes(self, values: Mapping[str, AttributeValue]) -> None:
        self._attributes.update(values)

    def mark_failed(self, error_type: str) -> None:
        self._attributes[names.ERROR_TYPE] = error_type
        self._status = Status(StatusCode.ERROR, error_type)

    def end(self) -> None:
        if self._sdk is not None:
            self._sdk.span_processor.on_end(
                ReadableSpan(
                    self._name,
                    self.context,
                    self._parent,
                    self._sdk.resource,
                    self._attributes,
                    links=self._links,
                    kind=self._kind,
                    status=self._status,
                    start_time=self._start_ns,
                    end_time=time_ns(),
                    instrumentation_scope=self._scope,
                )
            )


class TransferSpans:
    """Starts spans of one scope. The scope is one object a process: the exporter groups by it."""

    def __init__(self, tracer: Tracer, scope: InstrumentationScope) -> None:
        self._sdk = tracer if isinstance(tracer, SdkTracer) else None
        self._scope = scope

    def start(
        self,
        name: str,
        parent: SpanContext,
        attributes: Mapping[str, AttributeValue],
        links: Sequence[Link] = (),
    ) -> TransferSpan:
        """An internal span below `parent`; the caller ends it."""
        return TransferSpan(self._sdk, self._scope, name, SpanKind.INTERNAL, parent, links, attributes)
