"""Two runs are compared by the figures that both have."""

from __future__ import annotations

from typing import Any

from tools.bench.compare import table


def rows(first: dict[str, float], second: dict[str, float]) -> list[list[Any]]:
    shared = table(first, second)
    return [list(row) for row in zip(*(column.cells for column in shared.columns), strict=True)]


def test_the_ratio_is_of_the_second_run_to_the_first() -> None:
    assert rows({"a": 200.0}, {"a": 300.0}) == [["a", "200", "300", "1.500"]]


def test_what_one_run_has_not_is_left_out() -> None:
    assert rows({"a": 1.0, "b": 2.0}, {"b": 2.0, "c": 3.0}) == [["b", "2", "2", "1.000"]]


def test_nothing_has_no_ratio() -> None:
    assert rows({"a": 0.0}, {"a": 1.0}) == [["a", "0", "1", "-"]]
