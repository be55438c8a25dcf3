"""Metrics as text, in the two formats that Prometheus scrapes. Pure.

Sources: OpenMetrics 1.0; Prometheus, "Exposition formats" 0.0.4; OpenTelemetry, "Prometheus and OpenMetrics
Compatibility": a dot becomes an underscore, the unit is part of the name, a counter ends in `_total`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import Histogram, HistogramDataPoint, Metric, MetricsData, NumberDataPoint, Sum
from opentelemetry.util.types import AnyValue

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

_UNITS = {"s": "seconds", "By": "bytes"}
_ILLEGAL = re.compile(r"[^A-Za-z0-9]+")

Attributes = Mapping[str, AnyValue] | None


def render(data: MetricsData, *, openmetrics: bool) -> str:
    """Every metric once, in the order of names; one that several scopes have is of one kind in all of them."""
    found: defaultdict[str, list[Metric]] = defaultdict(list)
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                found[metric.name].append(metric)
    lines: list[str] = []
    for name in sorted(found):
        lines += _family(found[name], openmetrics)
    for resource in data.resource_metrics:
        name = "target" if openmetrics else "target_info"
        lines += [f"# TYPE {name} {'info' if openmetrics else 'gauge'}", f"# HELP {name} What is measured."]
        lines.append(f"target_info{_labels(resource.resource.attributes)} 1")
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _family(metrics: Sequence[Metric], openmetrics: bool) -> Iterator[str]:
    metric = metrics[0]
    name, unit = _ILLEGAL.sub("_", metric.name), _UNITS.get(metric.unit or "", "")
    if unit:
        name += f"_{unit}"
    kind, sample = "gauge", name
    if isinstance(metric.data, Histogram):
        kind = "histogram"
    elif isinstance(metric.data, Sum) and metric.data.is_monotonic:
        kind, sample = "counter", f"{name}_total"
    shown = name if openmetrics else sample
    yield f"# TYPE {shown} {kind}"
    if unit and openmetrics:
        yield f"# UNIT {shown} {unit}"
    yield f"# HELP {shown} {_escaped(metric.description or '', quotes=openmetrics)}"
    for point in chain.from_iterable(one.data.data_points for one in metrics):
        if isinstance(point, HistogramDataPoint):
            yield from _buckets(name, point, openmetrics)
        elif isinstance(point, NumberDataPoint):
            exemplars = point.exemplars if openmetrics and kind == "counter" else ()
            yield f"{sample}{_labels(point.attributes)} {_number(point.value)}{_exemplar(exemplars)}"


def _buckets(name: str, point: HistogramDataPoint, openmetrics: bool) -> Iterator[str]:
    of_bucket: list[list[Exemplar]] = [[] for _ in point.bucket_counts]
    for exemplar in point.exemplars if openmetrics else ():
        of_bucket[bisect_left(point.explicit_bounds, exemplar.value)].append(exemplar)
    bounds = [*(_number(float(bound)) for bound in point.explicit_bounds), "+Inf"]
    for bound, count, exemplars in zip(bounds, accumulate(point.bucket_counts), of_bucket, strict=True):
        yield f"{name}_bucket{_labels(point.attributes, le=bound)} {count}{_exemplar(exemplars)}"
    yield f"{name}_sum{_labels(point.attributes)} {_number(point.sum)}"
    yield f"{name}_count{_labels(point.attributes)} {point.count}"


def _exemplar(exemplars: Sequence[Exemplar]) -> str:
    """One a line at most: the newest that belongs to a span."""
    of_spans = [one for one in exemplars if one.trace_id is not None and one.span_id is not None]
    if not of_spans:
        return ""
    newest = max(of_spans, key=lambda one: one.time_unix_nano)
    labels = f'{{trace_id="{newest.trace_id:032x}",span_id="{newest.span_id:016x}"}}'
    return f" # {labels} {_number(newest.value)} {newest.time_unix_nano / 1e9:.3f}"


def _labels(attributes: Attributes, **more: str) -> str:
    pairs = {_ILLEGAL.sub("_", name): str(value) for name, value in sorted((attributes or {}).items())} | more
    if not pairs:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs.items()) + "}"


def _escaped(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))
