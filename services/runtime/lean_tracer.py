"""OpenTelemetry's tracer interface over lean spans: what `trace.get_tracer` answers once telemetry has started."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags, Tracer, TracerProvider
from opentelemetry.util.types import Attributes

from services.runtime.lean_span import LeanSpan, SpanSink, new_span_id
from services.runtime.signature_floor import SignatureFloor
from services.runtime.span_flags import ORDINARY, SAMPLED, is_ordinary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.trace import Link
    from opentelemetry.util._decorator import _AgnosticContextManager

_UNSAMPLED = TraceFlags(TraceFlags.DEFAULT)


class LeanTracer(Tracer):
    def __init__(self, sampler: SignatureFloor, sink: SpanSink) -> None:
        self._sampler = sampler
        self.sink = sink

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Span:
        parent: SpanContext | None = trace.get_current_span(context).get_span_context()
        if parent is None or not parent.is_valid:
            parent, trace_id = None, _new_trace_id()
        else:
            trace_id = parent.trace_id
        if not self._sampler.samples(parent, trace_id, name, kind):
            return NonRecordingSpan(SpanContext(trace_id, new_span_id(), False, _UNSAMPLED))
        ordinary = (parent is None or is_ordinary(parent)) and not self._sampler.is_signature(name)
        own = SpanContext(trace_id, new_span_id(), False, ORDINARY if ordinary else SAMPLED)
        return LeanSpan(self.sink, name, own, parent, kind, attributes, links or (), start_time)

    def start_as_current_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> _AgnosticContextManager[Span]:
        span = self.start_span(name, context, kind, attributes, links, start_time)
        return trace.use_span(span, end_on_exit, record_exception, set_status_on_exception)


class LeanTracerProvider(TracerProvider):
    def __init__(self, sampler: SignatureFloor, resource: Resource, processor: SpanProcessor) -> None:
        self._sampler = sampler
        self._resource = resource
        self._processor = processor
        self._tracers: dict[str, LeanTracer] = {}

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> LeanTracer:
        """The tracer of a scope, which is known by its name alone: one process holds one version of it."""
        if instrumenting_module_name not in self._tracers:
            scope = InstrumentationScope(
                instrumenting_module_name, instrumenting_library_version or "", schema_url, attributes
            )
            tracer = LeanTracer(self._sampler, SpanSink(self._processor, self._resource, scope))
            self._tracers.setdefault(instrumenting_module_name, tracer)
        return self._tracers[instrumenting_module_name]

    def shutdown(self) -> None:
        """Export what is queued; spans that end later are dropped."""
        self._processor.shutdown()


def _new_trace_id() -> int:
    while True:
        trace_id = random.getrandbits(128)
        if trace_id:
            return trace_id
