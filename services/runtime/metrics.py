"""The instruments of a process. Made when a module is imported, they measure nothing until metrics have started.

`counter(WALLET_TRANSFERS).add(3, attributes)` costs the SDK's 8 us: once a batch, not once an item. What is done for
each signature goes into `histogram(…)`, or is counted by who does it and read when it is asked for (`observe`), as what
there is of something now.
Attributes are of few values: never an address, an account, an actor or a link.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Observation
from opentelemetry.sdk.metrics.export import Metric
from opentelemetry.util.types import Attributes

from services.runtime.lean_histogram import LeanHistogram
from services.runtime.measure import Measure

SCOPE = "goldenlink"

_meter = metrics.get_meter(SCOPE)
_histograms: list[LeanHistogram] = []


def counter(measure: Measure) -> Counter:
    assert measure.instrument == "counter"
    return _meter.create_counter(measure.name, measure.unit, measure.brief)


def histogram(measure: Measure) -> LeanHistogram:
    """Of durations in seconds."""
    assert measure.instrument == "histogram"
    made = LeanHistogram(measure)
    _histograms.append(made)
    return made


def observe(measure: Measure, read: Callable[[], Sequence[tuple[float, Attributes]]]) -> None:
    """Have `read` tell (value, attributes) at each collection, in whichever thread collects: it only looks.

    A counter's value is that since the start of the process. Called where the process is wired, once a measure.
    """

    def observations(_: CallbackOptions) -> list[Observation]:
        return [Observation(value, attributes) for value, attributes in read()]

    create = {
        "counter": _meter.create_observable_counter,
        "updowncounter": _meter.create_observable_up_down_counter,
        "gauge": _meter.create_observable_gauge,
    }[measure.instrument]
    create(measure.name, [observations], measure.unit, measure.brief)


def collect_histograms() -> list[Metric]:
    """What the SDK does not know of."""
    return [metric for one in _histograms if (metric := one.collect())]
