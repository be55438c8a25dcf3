"""What a list of durations says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that `percent` of all do not exceed (0 < percent ≤ 100)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def describe_ms(durations_s: Sequence[float]) -> dict[str, Any]:
    """Count, median, 99th percentile and the extremes, in milliseconds."""
    return {
        "count": len(durations_s),
        "min_ms": round(min(durations_s) * 1000, 4),
        "p50_ms": round(median(durations_s) * 1000, 4),
        "p99_ms": round(percentile(durations_s, 99) * 1000, 4),
        "max_ms": round(max(durations_s) * 1000, 4),
    }
