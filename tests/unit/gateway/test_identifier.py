from __future__ import annotations

import re

import pytest

from services.gateway import identifier
from services.gateway.identifier import IdentifierSource


def test_ids_sort_by_time_and_never_repeat() -> None:
    source = IdentifierSource()
    made = [source.next("t") for _ in range(5_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"t-[0-9A-HJKMNP-TV-Z]{26}", name) for name in made)


def test_ids_grow_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    source = IdentifierSource()
    before = source.next("t")
    monkeypatch.setattr(identifier.time, "time_ns", lambda: 1_000_000_000)
    assert source.next("t") > before
