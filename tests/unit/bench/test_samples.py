"""Percentiles are what a reader compares: they are checked against the definition."""

import pytest

from tools.bench.samples import describe_ms, percentile


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        # Nearest rank, the textbook example.
        ([15, 20, 35, 40, 50], 30, 20),
        ([15, 20, 35, 40, 50], 40, 20),
        ([15, 20, 35, 40, 50], 50, 35),
        ([15, 20, 35, 40, 50], 100, 50),
        (list(range(1, 101)), 99, 99),
        ([7.0], 99, 7.0),
        ([3.0, 1.0], 1, 1.0),
    ],
)
def test_percentile_is_the_nearest_rank(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_durations_are_told_in_milliseconds() -> None:
    assert describe_ms([0.001, 0.002, 0.009]) == {
        "count": 3,
        "min_ms": 1.0,
        "p50_ms": 2.0,
        "p99_ms": 9.0,
        "max_ms": 9.0,
    }
