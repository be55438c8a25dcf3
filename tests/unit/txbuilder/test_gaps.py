"""Which nonces are gaps, by what is recorded of them."""

from __future__ import annotations

from services.txbuilder.gap_store import Slot
from services.txbuilder.gaps import find_gaps


def held(nonce: int, *, old: bool = True) -> Slot:
    return Slot(nonce, f"t-{nonce}", False, old)


def free(nonce: int, *, old: bool = True) -> Slot:
    return Slot(nonce, "", False, old)


def test_whoever_holds_a_nonce_below_the_highest_is_named() -> None:
    assert list(find_gaps([held(3), free(4), held(5), held(6)], 3)) == [(3, "t-3"), (4, ""), (5, "t-5")]


def test_what_nothing_is_recorded_of_is_a_gap() -> None:
    assert list(find_gaps([held(3)], 0)) == [(0, ""), (1, ""), (2, "")]
    assert list(find_gaps([held(3), held(6)], 3)) == [(3, "t-3"), (4, ""), (5, "")]


def test_nothing_above_the_highest_reservation_is_a_gap() -> None:
    assert list(find_gaps([held(0), free(1), free(2)], 0)) == []
    assert list(find_gaps([free(0)], 0)) == []
    assert list(find_gaps([], 7)) == []


def test_what_is_young_is_left_alone() -> None:
    assert list(find_gaps([free(0, old=False), held(1, old=False), held(2)], 0)) == []
    assert list(find_gaps([held(2, old=False)], 0)) == []


def test_a_nonce_with_a_superseding_link_is_on_its_way() -> None:
    cancel = Slot(3, "t-3:cancel", True, True)
    assert list(find_gaps([held(3), cancel, held(4), held(5)], 3)) == [(4, "t-4")]
    # Its transfer was voided meanwhile.
    assert list(find_gaps([cancel, held(4), held(5)], 3)) == [(4, "t-4")]
