"""Our histogram tells what the SDK's own would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from services.runtime.lean_histogram import DURATION_BOUNDS, LeanHistogram
from services.runtime.lean_span import LeanSpan, SpanSink
from services.runtime.metric_names import WALLET_SIGNATURE_DURATION

OK, LATE = {"wallet.signature.status": "success"}, {"wallet.signature.status": "timeout"}
_durations = st.one_of(st.sampled_from(DURATION_BOUNDS), st.floats(0, 20))


def lean_points(measured: list[tuple[float, dict[str, str]]]) -> list[Any]:
    histogram = LeanHistogram(WALLET_SIGNATURE_DURATION)
    for value, attributes in measured:
        histogram.series(attributes).record(value)
    metric = histogram.collect()
    return list(metric.data.data_points) if metric is not None else []


def sdk_points(measured: list[tuple[float, dict[str, str]]]) -> list[Any]:
    reader = InMemoryMetricReader()
    histogram = (
        MeterProvider([reader], shutdown_on_exit=False)
        .get_meter("sdk")
        .create_histogram("d", explicit_bucket_boundaries_advisory=DURATION_BOUNDS)
    )
    for value, attributes in measured:
        histogram.record(value, attributes)
    data = reader.get_metrics_data()
    return list(data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points) if data is not None else []


def without_times(points: list[Any]) -> list[Any]:
    found = [
        replace(
            point,
            start_time_unix_nano=0,
            time_unix_nano=0,
            bucket_counts=tuple(point.bucket_counts),
            explicit_bounds=tuple(point.explicit_bounds),
        )
        for point in points
    ]
    return sorted(found, key=lambda point: str(point.attributes))


def span(trace_id: int, span_id: int) -> LeanSpan:
    sink = SpanSink(SpanProcessor(), Resource.get_empty(), InstrumentationScope("test"))
    context = SpanContext(trace_id, span_id, False, TraceFlags(1))
    return LeanSpan(sink, "signer.signature", context, None, SpanKind.INTERNAL, None)


@given(st.lists(st.tuples(_durations, st.sampled_from([OK, LATE])), max_size=30))
def test_the_sdk_would_tell_the_same(measured: list[tuple[float, dict[str, str]]]) -> None:
    assert without_times(lean_points(measured)) == without_times(sdk_points(measured))


def test_each_bucket_shows_its_newest_recorded_signature() -> None:
    series = LeanHistogram(WALLET_SIGNATURE_DURATION).series(OK)
    series.record(0.0004, span(7, 1))
    series.record(0.0003, span(7, 2))
    series.record(0.0004, None)
    # Somebody else's span, as it is handed on where tracing is off: nobody will find it.
    series.record(0.0004, NonRecordingSpan(SpanContext(7, 9, True, TraceFlags(1))))
    series.record(99.0, span(7, 3))
    point = series.point(1, 2)
    assert point is not None
    assert [(one.value, one.trace_id, one.span_id) for one in point.exemplars] == [(0.0003, 7, 2), (99.0, 7, 3)]


def test_the_sdks_own_exemplars_would_carry_the_context_that_is_handed_over() -> None:
    """What is current in a batch is the call's span, so the item's is handed over; a lean span is as good as any."""
    reader = InMemoryMetricReader()
    counter = MeterProvider([reader], shutdown_on_exit=False).get_meter("sdk").create_counter("c")
    counter.add(1, {}, trace.set_span_in_context(span(7, 5), Context()))
    data = reader.get_metrics_data()
    assert data is not None
    (point,) = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert [(one.trace_id, one.span_id) for one in point.exemplars] == [(7, 5)]
