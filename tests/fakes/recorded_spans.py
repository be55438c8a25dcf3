"""Spans as the services make them, recorded in memory."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from services.runtime.lean_tracer import LeanTracerProvider
from services.runtime.signature_floor import SignatureFloor

_exporter = InMemorySpanExporter()


def recording_provider(
    exporter: InMemorySpanExporter, strategy: Sampler = ALWAYS_ON, signature_roots: frozenset[str] = frozenset()
) -> LeanTracerProvider:
    """A provider that hands each span to `exporter` when it ends."""
    return LeanTracerProvider(
        SignatureFloor(strategy, signature_roots), Resource.get_empty(), SimpleSpanProcessor(exporter)
    )


def spans_of_this_process() -> InMemorySpanExporter:
    """Emptied. OpenTelemetry takes one provider a process: it is installed by the first test that asks."""
    if not isinstance(trace.get_tracer_provider(), LeanTracerProvider):
        trace.set_tracer_provider(recording_provider(_exporter))
    _exporter.clear()
    return _exporter
