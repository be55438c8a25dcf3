"""Which spans are recorded, and what an exporter gets of them."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from services.runtime import rpc_tracing
from services.runtime.span_flags import as_ordinary, is_ordinary
from services.runtime.telemetry import format_traceparent, stored_context
from tests.fakes.recorded_spans import recording_provider

_TRACE_ID, _SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
_ROOTS = frozenset({"gateway.transfer"})


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def _caller_says(flags: int) -> Context:
    remote = SpanContext(int(_TRACE_ID, 16), int(_SPAN_ID, 16), is_remote=True, trace_flags=TraceFlags(flags))
    return trace.set_span_in_context(NonRecordingSpan(remote), Context())


def _names(exporter: InMemorySpanExporter) -> list[str]:
    return [span.name for span in exporter.get_finished_spans()]


@pytest.mark.parametrize("strategy", [ALWAYS_ON, ALWAYS_OFF])
def test_signature_roots_are_recorded_under_an_unsampled_parent_and_their_children_inherit_it(
    exporter: InMemorySpanExporter, strategy: Sampler
) -> None:
    tracer = recording_provider(exporter, strategy, _ROOTS).get_tracer("test")
    with tracer.start_as_current_span("gateway.transfer", _caller_says(0)) as root:
        assert format_traceparent(root.get_span_context())[3:35] == _TRACE_ID
        assert format_traceparent(root.get_span_context()).endswith("-01")
        with tracer.start_as_current_span("anything") as child:
            assert child.is_recording()
            assert format_traceparent(child.get_span_context()).endswith("-01")
    assert _names(exporter) == ["anything", "gateway.transfer"]


@pytest.mark.parametrize("strategy", [ALWAYS_ON, ALWAYS_OFF])
def test_other_spans_follow_their_parents_flag(exporter: InMemorySpanExporter, strategy: Sampler) -> None:
    tracer = recording_provider(exporter, strategy, _ROOTS).get_tracer("test")
    for flags in (0, 1):
        with tracer.start_as_current_span(f"flag {flags}", _caller_says(flags)) as span:
            assert format_traceparent(span.get_span_context()).endswith(f"-0{flags}")
            assert format_traceparent(span.get_span_context())[36:52] != _SPAN_ID
            with tracer.start_as_current_span(f"below {flags}"):
                pass
    assert _names(exporter) == ["below 1", "flag 1"]


def test_the_strategy_decides_about_new_traces_only(exporter: InMemorySpanExporter) -> None:
    tracer = recording_provider(exporter, ALWAYS_OFF).get_tracer("test")
    with tracer.start_as_current_span("status", Context()) as root:
        assert format_traceparent(root.get_span_context()).endswith("-00")
        with tracer.start_as_current_span("call") as child:
            assert child.get_span_context().trace_id == root.get_span_context().trace_id
    # What is stored with a row is always sampled.
    tracer.start_span("submission", stored_context(f"00-{_TRACE_ID}-{_SPAN_ID}-00")).end()
    assert _names(exporter) == ["submission"]


def test_a_span_is_exported_as_it_was_written(exporter: InMemorySpanExporter) -> None:
    tracer = recording_provider(exporter).get_tracer("test")
    link = Link(SpanContext(1, 2, is_remote=True))
    span = tracer.start_span("call", _caller_says(1), SpanKind.CLIENT, {"a": 1}, [link])
    span.set_attribute("b", 2)
    span.set_attributes({"b": 3, "c": "x"})
    span.set_status(Status(StatusCode.ERROR, "POLICY_DENIED"))
    span.add_event("sent", {"n": 1})
    span.end()
    (ended,) = exporter.get_finished_spans()
    assert (ended.name, ended.kind, dict(ended.attributes or {})) == (
        "call",
        SpanKind.CLIENT,
        {"a": 1, "b": 3, "c": "x"},
    )
    assert (ended.status.status_code, ended.status.description) == (StatusCode.ERROR, "POLICY_DENIED")
    assert ended.parent is not None
    assert (f"{ended.parent.span_id:016x}", ended.parent.is_remote) == (_SPAN_ID, True)
    assert (list(ended.links), [event.name for event in ended.events]) == ([link], ["sent"])
    assert ended.instrumentation_scope is not None
    assert ended.instrumentation_scope.name == "test"
    assert ended.start_time is not None
    assert ended.end_time is not None
    assert ended.start_time <= ended.end_time


def test_what_is_written_after_the_end_is_not_exported_nor_a_second_end(exporter: InMemorySpanExporter) -> None:
    span = recording_provider(exporter).get_tracer("test").start_span("call")
    span.end()
    span.set_attribute("late", 1)
    span.set_attributes({"late": 1})
    span.set_status(StatusCode.ERROR)
    span.update_name("late")
    span.add_event("late")
    span.end()
    (ended,) = exporter.get_finished_spans()
    assert not span.is_recording()
    assert (ended.name, dict(ended.attributes or {}), ended.events) == ("call", {}, ())
    assert ended.status.status_code is StatusCode.UNSET


def test_an_exceptions_text_never_reaches_a_span(exporter: InMemorySpanExporter) -> None:
    span = recording_provider(exporter).get_tracer("test").start_span("call")
    span.record_exception(ValueError("the PIN is 1234"))
    span.end()
    assert "1234" not in exporter.get_finished_spans()[0].to_json()


def test_a_scope_has_one_tracer(exporter: InMemorySpanExporter) -> None:
    provider = recording_provider(exporter)
    assert provider.get_tracer("a") is provider.get_tracer("a") is not provider.get_tracer("b")


def test_only_what_is_below_a_signature_root_is_a_signature_operation(exporter: InMemorySpanExporter) -> None:
    tracer = recording_provider(exporter, ALWAYS_ON, _ROOTS).get_tracer("test")
    with tracer.start_as_current_span("GET /v1/status", Context()):
        with tracer.start_as_current_span("ask") as asked:
            ordinary = rpc_tracing.outgoing_metadata(asked)
        with tracer.start_as_current_span("gateway.transfer"), tracer.start_as_current_span("sign") as sign:
            signature = rpc_tracing.outgoing_metadata(sign)
    # On the other side, where no root is known.
    peer = recording_provider(exporter).get_tracer("peer")
    for metadata in (ordinary, signature):
        with peer.start_as_current_span("serve", rpc_tracing.incoming_context(metadata)):
            peer.start_span("within").end()
    peer.start_span("resumed", stored_context(f"00-{_TRACE_ID}-{_SPAN_ID}-00")).end()
    standing = [(span.name, is_ordinary(span.context)) for span in exporter.get_finished_spans()]
    assert standing == [
        ("ask", True),
        ("sign", False),
        ("gateway.transfer", False),
        ("GET /v1/status", True),
        ("within", True),
        ("serve", True),
        ("within", False),
        ("serve", False),
        ("resumed", False),
    ]


def test_a_strangers_sampled_flag_makes_no_signature_operation(exporter: InMemorySpanExporter) -> None:
    tracer = recording_provider(exporter, ALWAYS_OFF, _ROOTS).get_tracer("test")
    remote = as_ordinary(SpanContext(int(_TRACE_ID, 16), int(_SPAN_ID, 16), True, TraceFlags(1)))
    tracer.start_span("GET /v1/status", trace.set_span_in_context(NonRecordingSpan(remote), Context())).end()
    (span,) = exporter.get_finished_spans()
    assert is_ordinary(span.context)
