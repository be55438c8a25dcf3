"""Spans in a transfer's own trace: what an exporter gets of them."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, NoOpTracer, SpanKind, StatusCode

from services.runtime import attributes
from services.runtime.transfer_span import TransferSpans, stored_parent, transfer_parent
from tests.fakes.recorded_spans import recording_provider

_TRACE_ID, _SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
_UNSAMPLED = f"00-{_TRACE_ID}-{_SPAN_ID}-00"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> TransferSpans:
    return TransferSpans(recording_provider(exporter).get_tracer("test"))


def test_a_span_is_sampled_below_the_stored_one_whose_flag_says_no(
    spans: TransferSpans, exporter: InMemorySpanExporter
) -> None:
    link = Link(transfer_parent(1, 2))
    span = spans.start("step", stored_parent(_UNSAMPLED), {"a": 1}, [link])
    span.set_attribute("b", 2)
    span.end()
    (ended,) = exporter.get_finished_spans()
    assert (ended.name, ended.kind, dict(ended.attributes or {})) == ("step", SpanKind.INTERNAL, {"a": 1, "b": 2})
    assert ended.parent is not None
    assert (f"{ended.parent.span_id:016x}", ended.parent.is_remote) == (_SPAN_ID, True)
    assert ended.context.trace_flags.sampled
    assert list(ended.links) == [link]
    assert ended.instrumentation_scope is not None
    assert ended.instrumentation_scope.name == "test"
    assert ended.status.status_code is StatusCode.UNSET
    assert span.entry_ids == (_TRACE_ID, f"{ended.context.span_id:016x}")


def test_a_child_that_failed_shows_its_reason_and_its_parent(
    spans: TransferSpans, exporter: InMemorySpanExporter
) -> None:
    parent = spans.start("step", stored_parent(_UNSAMPLED), {})
    with parent.as_current():
        assert trace.get_current_span() is parent
    child = parent.child("request", SpanKind.CLIENT, {})
    child.mark_failed("NODE_UNAVAILABLE")
    child.end()
    (ended,) = exporter.get_finished_spans()
    assert (ended.parent, ended.kind) == (parent.context, SpanKind.CLIENT)
    assert (ended.status.status_code, ended.status.description) == (StatusCode.ERROR, "NODE_UNAVAILABLE")
    assert dict(ended.attributes or {}) == {attributes.ERROR_TYPE: "NODE_UNAVAILABLE"}


def test_without_tracing_entries_carry_the_stored_ids() -> None:
    span = TransferSpans(NoOpTracer()).start("step", stored_parent(_UNSAMPLED), {})
    assert not span.is_recording()
    assert span.child("request", SpanKind.CLIENT, {}).entry_ids == span.entry_ids == (_TRACE_ID, _SPAN_ID)
    span.end()
