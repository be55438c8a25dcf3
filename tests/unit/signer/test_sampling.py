"""Signer keeps the spans of its signatures whatever the caller's flag says, and no other span for its sake."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from protos.wallet.v1 import signer_pb2
from services.runtime import rpc_tracing
from services.signer.telemetry import SIGNATURE_ROOTS, TOKEN_SPAN
from tests.fakes.recorded_spans import recording_provider


class NeverAsked(Sampler):
    def should_sample(self, *_: object, **__: object) -> None:  # type: ignore[override]
        raise AssertionError("a signature operation asks no strategy")

    def get_description(self) -> str:
        return "NeverAsked"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    tracer = recording_provider(exporter, NeverAsked(), SIGNATURE_ROOTS).get_tracer("test")
    monkeypatch.setattr(rpc_tracing, "_tracer", tracer)
    return exporter


@pytest.mark.parametrize("parent", [SpanContext(1, 2, True, TraceFlags(0)), None])
def test_no_caller_and_no_strategy_lowers_a_signature(
    exporter: InMemorySpanExporter, parent: SpanContext | None
) -> None:
    context = trace.set_span_in_context(NonRecordingSpan(parent), Context()) if parent else Context()
    service = signer_pb2.DESCRIPTOR.services_by_name["Signer"]
    signing = [method.name for method in service.methods if method.name.startswith("Sign")]
    assert len(signing) == 2
    for method in signing:
        with trace.use_span(rpc_tracing.start_span(f"/{service.full_name}/{method}", SpanKind.SERVER, context), True):
            rpc_tracing.start_span("/wallet.v1.Evidence/AppendEntries", SpanKind.CLIENT).end()
    names = [span.name for span in exporter.get_finished_spans()]
    expected = []
    for method in signing:
        expected += ["wallet.v1.Evidence/AppendEntries", f"wallet.v1.Signer/{method}"]
    assert names == expected
    assert TOKEN_SPAN in SIGNATURE_ROOTS


def test_other_calls_follow_their_callers_flag(exporter: InMemorySpanExporter) -> None:
    context = trace.set_span_in_context(NonRecordingSpan(SpanContext(1, 2, True, TraceFlags(0))), Context())
    rpc_tracing.start_span("/wallet.v1.Signer/GetPolicy", SpanKind.SERVER, context).end()
    assert not exporter.get_finished_spans()
