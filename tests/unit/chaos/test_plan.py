"""A seed is a run: the same transfers, by the same requests."""

from __future__ import annotations

from collections import Counter

from tools.chaos.plan import ACCOUNTS, AWAITING, Kind, make_orders
from tools.chaos.policies import THRESHOLD_WEI


def test_a_seed_makes_the_same_orders_again() -> None:
    assert make_orders(7, 500) == make_orders(7, 500)
    assert make_orders(7, 500) != make_orders(8, 500)


def test_as_many_transfers_as_asked_for_each_with_an_amount_of_its_own() -> None:
    wishes = [wish for order in make_orders(1, 2_000) for wish in order.wishes]
    assert len(wishes) == 2_000
    assert {wish.value_wei % THRESHOLD_WEI for wish in wishes} == set(range(1, 2_001))
    assert len({wish.value_wei for wish in wishes}) == 2_000
    assert len({order.key for order in make_orders(1, 2_000)}) == len(make_orders(1, 2_000))


def test_the_load_holds_every_kind_and_uses_every_account() -> None:
    wishes = [wish for order in make_orders(1, 2_000) for wish in order.wishes]
    kinds = Counter(wish.kind for wish in wishes)
    assert set(kinds) == set(Kind)
    assert kinds[Kind.PLAIN] > 1_600
    assert {wish.account for wish in wishes} == set(range(ACCOUNTS + 1))
    assert {wish.account for wish in wishes if wish.kind is Kind.POOR} == {ACCOUNTS}


def test_only_what_is_to_wait_for_approvals_is_above_the_threshold() -> None:
    wishes = [wish for order in make_orders(1, 2_000) for wish in order.wishes]
    assert {wish.kind for wish in wishes if wish.value_wei > THRESHOLD_WEI} == AWAITING


def test_what_nobody_decides_about_is_asked_for_early() -> None:
    wishes = [wish for order in make_orders(1, 2_000) for wish in order.wishes]
    # A batch that begins in the first quarter may end after it.
    assert max(wish.number for wish in wishes if wish.kind is Kind.UNDECIDED) < 2_000 / 4 + 60
