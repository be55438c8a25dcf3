"""How long work stood still after a fault is read from the times of the transfers' changes."""

from __future__ import annotations

from typing import Any

import pytest

from tools.chaos import recovery
from tools.chaos.faults import Injected
from tools.chaos.recovery import summarise


class Events:
    """A database that holds these rows of `transfer_events`."""

    def __init__(self, *events: tuple[str, str, float]) -> None:
        self._rows = [(one, number, state, at) for number, (one, state, at) in enumerate(events, 1)]

    async def rows(self, statement: str, transfer: str, event: int, limit: int) -> list[tuple[Any, ...]]:
        assert "transfer_events" in statement
        return [row for row in sorted(self._rows) if row[:2] > (transfer, event)][:limit]


async def summary(events: Events, *at: float) -> tuple[float | None, float | None]:
    (row,) = await summarise(events, [Injected("kill", "signer", one, one) for one in at])  # type: ignore[arg-type]
    assert row.injected == len(at)
    return row.median_s, row.longest_s


async def test_the_transfer_that_waited_longest_counts() -> None:
    events = Events(
        ("a", "ACCEPTED", 10.0), ("a", "BUILT", 11.0), ("a", "SIGNED", 17.5), ("a", "SUBMITTED", 17.6),
        ("b", "ACCEPTED", 11.5), ("b", "FAILED", 12.5),
    )  # fmt: skip
    assert await summary(events, 12.0) == (5.5, 5.5)


async def test_what_waits_for_the_chain_does_not_count() -> None:
    events = Events(("a", "SIGNED", 10.0), ("a", "SUBMITTED", 10.5), ("a", "INCLUDED", 30.0), ("a", "FINALIZED", 60.0))
    assert await summary(events, 12.0) == (None, None)


async def test_several_faults_have_a_median_and_a_longest() -> None:
    events = Events(("a", "ACCEPTED", 0.0), ("a", "BUILT", 10.0))
    assert await summary(events, 1.0, 4.0, 9.0) == (6.0, 9.0)


async def test_what_ended_before_the_fault_does_not_hide_what_did_not() -> None:
    events = Events(
        ("a", "ACCEPTED", 0.0), ("a", "BUILT", 20.0),
        ("b", "ACCEPTED", 1.0), ("b", "BUILT", 2.0),
    )  # fmt: skip
    assert await summary(events, 5.0) == (15.0, 15.0)


async def test_a_stay_may_reach_over_two_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_PAGE", 1)
    events = Events(
        ("a", "ACCEPTED", 0.0), ("a", "BUILT", 10.0),
        ("b", "ACCEPTED", 11.0), ("b", "FAILED", 12.0),
    )  # fmt: skip
    assert await summary(events, 4.0) == (6.0, 6.0)
