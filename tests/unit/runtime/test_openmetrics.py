"""What we render is read back by the Prometheus project's own parsers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric, MetricsData, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from services.runtime.lean_histogram import LeanHistogram
from services.runtime.lean_span import LeanSpan, SpanSink
from services.runtime.measure import Measure
from services.runtime.metric_names import WALLET_SIGNATURE_DURATION
from services.runtime.openmetrics import render

STATUS = {"wallet.signature.status": "success"}


def counted(amount: int, attributes: dict[str, str], scopes: Iterable[str] = ("goldenlink",)) -> MetricsData:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], Resource({"service.name": "signer"}), shutdown_on_exit=False)
    for scope in scopes:
        meter = provider.get_meter(scope)
        meter.create_counter("wallet.signatures", "{signature}", 'They say "ended"\\.').add(amount, attributes)
    data = reader.get_metrics_data()
    assert data is not None
    return data


def measured(metric: Metric | None) -> MetricsData:
    assert metric is not None
    scope = ScopeMetrics(InstrumentationScope("goldenlink"), [metric], "")
    return MetricsData([ResourceMetrics(Resource({"service.name": "signer"}), [scope], "")])


def recorded(trace_id: int, span_id: int) -> LeanSpan:
    sink = SpanSink(SpanProcessor(), Resource.get_empty(), InstrumentationScope("test"))
    context = SpanContext(trace_id, span_id, False, TraceFlags(1))
    return LeanSpan(sink, "signer.signature", context, None, SpanKind.INTERNAL, None)


def samples(families: Iterable[Any]) -> dict[tuple[str, tuple[tuple[str, str], ...]], Any]:
    return {(one.name, tuple(sorted(one.labels.items()))): one for family in families for one in family.samples}


@given(st.integers(0, 2**53), st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.just("\n"), max_size=8))
def test_a_counter_is_read_back_whatever_its_attribute_holds(amount: int, value: str) -> None:
    data = counted(amount, {"error.type": value})
    for text, parse in (
        (render(data, openmetrics=True), parse_openmetrics),
        (render(data, openmetrics=False), parse_prometheus),
    ):
        found = samples(parse(text))
        assert found["wallet_signatures_total", (("error_type", value),)].value == amount


def test_the_name_of_the_service_is_told() -> None:
    for openmetrics, parse in ((True, parse_openmetrics), (False, parse_prometheus)):
        found = samples(parse(render(counted(1, {}), openmetrics=openmetrics)))
        assert found["target_info", (("service_name", "signer"),)].value == 1


def test_what_two_scopes_count_stands_in_one_family() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], Resource({}), shutdown_on_exit=False)
    for scope in ("one", "two"):
        provider.get_meter(scope).create_counter("wallet.signatures").add(2, {"error.type": scope})
    data = reader.get_metrics_data()
    assert data is not None
    found = samples(parse_openmetrics(render(data, openmetrics=True)))
    assert [found["wallet_signatures_total", (("error_type", scope),)].value for scope in ("one", "two")] == [2, 2]


def test_a_duration_tells_its_unit_its_buckets_and_the_signature_behind_each() -> None:
    histogram = LeanHistogram(WALLET_SIGNATURE_DURATION)
    span = recorded(0xAB, 0xCD)
    for value in (0.0004, 0.0004, 0.3):
        histogram.series(STATUS).record(value, span)
    data = measured(histogram.collect())
    families = {family.name: family for family in parse_openmetrics(render(data, openmetrics=True))}
    family = families["wallet_signature_duration_seconds"]
    assert (family.type, family.unit) == ("histogram", "seconds")
    buckets = {float(one.labels["le"]): one for one in family.samples if one.name.endswith("_bucket")}
    assert [buckets[bound].value for bound in (0.00025, 0.0005, 0.25, 0.5, math.inf)] == [0, 2, 2, 3, 3]
    shown = {bound: one.exemplar for bound, one in buckets.items() if one.exemplar is not None}
    assert sorted(shown) == [0.0005, 0.5]
    assert shown[0.5].labels == {"trace_id": f"{0xAB:032x}", "span_id": f"{0xCD:016x}"}
    assert shown[0.5].value == 0.3


def test_the_older_format_has_the_same_numbers_and_no_exemplars() -> None:
    histogram = LeanHistogram(WALLET_SIGNATURE_DURATION)
    histogram.series(STATUS).record(0.3, recorded(0xAB, 0xCD))
    text = render(measured(histogram.collect()), openmetrics=False)
    found = samples(parse_prometheus(text))
    labels = (("wallet_signature_status", "success"),)
    assert found["wallet_signature_duration_seconds_count", labels].value == 1
    assert found["wallet_signature_duration_seconds_sum", labels].value == pytest.approx(0.3)
    assert "trace_id" not in text


def test_a_depth_is_a_gauge_although_it_is_a_sum() -> None:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], Resource({}), shutdown_on_exit=False).get_meter("one")
    depth = Measure("wallet.evidence.queue.depth", "updowncounter", "{entry}", "Entries that wait.")
    meter.create_up_down_counter(depth.name, depth.unit, depth.brief).add(3)
    data = reader.get_metrics_data()
    assert data is not None
    families = {family.name: family for family in parse_openmetrics(render(data, openmetrics=True))}
    assert families["wallet_evidence_queue_depth"].type == "gauge"
    assert families["wallet_evidence_queue_depth"].samples[0].value == 3
