"""Spans in a transfer's own trace: always sampled, below what the transfer's row names, known to its entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, Tracer
from opentelemetry.util.types import AttributeValue

from services.runtime import attributes as names
from services.runtime.lean_span import NOWHERE, LeanSpan, SpanSink, new_span_id
from services.runtime.lean_tracer import LeanTracer

# What is done for a transfer is always sampled, whatever its first caller's flag said.
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


def transfer_parent(trace_id: int, span_id: int) -> SpanContext:
    """Where a transfer's trace came from, as the parent of a span of ours."""
    return SpanContext(trace_id, span_id, True, _SAMPLED)


def stored_parent(traceparent: str) -> SpanContext:
    """The same of a row's traceparent, which was checked before it was stored."""
    return transfer_parent(int(traceparent[3:35], 16), int(traceparent[36:52], 16))


class TransferSpan(LeanSpan):
    def __init__(
        self,
        sink: SpanSink,
        name: str,
        kind: SpanKind,
        parent: SpanContext,
        attributes: Mapping[str, AttributeValue],
        links: Sequence[Link] = (),
    ) -> None:
        # Without tracing nothing is recorded, and the ids that are handed on are the parent's.
        own = parent if sink is NOWHERE else SpanContext(parent.trace_id, new_span_id(), False, _SAMPLED)
        super().__init__(sink, name, own, parent, kind, attributes, links)

    @property
    def entry_ids(self) -> tuple[str, str]:
        """(trace_id, span_id) in hex for an entry that this span writes."""
        return f"{self._context.trace_id:032x}", f"{self._context.span_id:016x}"

    def child(self, name: str, kind: SpanKind, attributes: Mapping[str, AttributeValue]) -> TransferSpan:
        return TransferSpan(self._sink, name, kind, self._context, attributes)

    def as_current(self) -> AbstractContextManager[Span]:
        return trace.use_span(self, record_exception=False, set_status_on_exception=False)

    def mark_failed(self, error_type: str) -> None:
        self.set_attribute(names.ERROR_TYPE, error_type)
        self.set_status(Status(StatusCode.ERROR, error_type))


class TransferSpans:
    """Starts spans of one scope."""

    def __init__(self, tracer: Tracer) -> None:
        self._sink = tracer.sink if isinstance(tracer, LeanTracer) else NOWHERE

    def start(
        self,
        name: str,
        parent: SpanContext,
        attributes: Mapping[str, AttributeValue],
        links: Sequence[Link] = (),
    ) -> TransferSpan:
        """An internal span below `parent`; the caller ends it."""
        return TransferSpan(self._sink, name, SpanKind.INTERNAL, parent, attributes, links)
