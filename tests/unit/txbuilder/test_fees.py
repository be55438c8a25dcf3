"""Fee arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import Reason, WalletError
from services.txbuilder.fees import (
    Bid,
    Fees,
    Market,
    dynamic_fee,
    gas_price,
    intrinsic_gas,
    outbid,
    priority_fee,
    with_margin,
)

MARKET = Market(block_number=7, block_gas_limit=30_000_000, base_fee_wei=1_000, priority_fee_wei=20)


def test_without_a_cap_the_base_fee_may_double() -> None:
    assert dynamic_fee(Fees(), MARKET) == (2_020, 20)


def test_the_callers_cap_and_tip_are_kept() -> None:
    assert dynamic_fee(Fees(max_fee_per_gas_wei=5_000, max_priority_fee_per_gas_wei=7), MARKET) == (5_000, 7)


@given(cap=st.integers(1_000, 10**12))
def test_the_tip_never_exceeds_a_cap(cap: int) -> None:
    max_fee, tip = dynamic_fee(Fees(max_fee_per_gas_wei=cap), Market(1, 1, 1_000, 10**9))
    assert max_fee == cap
    assert tip <= cap


@pytest.mark.parametrize(
    ("estimate", "fees", "field"),
    [
        (dynamic_fee, Fees(max_fee_per_gas_wei=999), "max_fee_per_gas_wei"),
        (gas_price, Fees(gas_price_wei=999), "gas_price_wei"),
    ],
)
def test_a_cap_below_the_base_fee_is_refused_by_name(estimate: object, fees: Fees, field: str) -> None:
    with pytest.raises(WalletError) as refused:
        estimate(fees, MARKET)  # type: ignore[operator]
    assert refused.value.reason is Reason.FEE_CAP_BELOW_BASE_FEE
    assert refused.value.details["field"] == field
    assert "1000" in str(refused.value.details["rule"])


@given(base=st.integers(0, 10**12))
def test_an_estimated_gas_price_outlives_one_full_block(base: int) -> None:
    assert gas_price(Fees(), Market(1, 1, base, 1)) >= base + base // 8


def test_the_median_tip_and_its_default() -> None:
    assert priority_fee([5, 0, 9, 7], 1) == 7
    assert priority_fee([0, 0], 1) == 1


@given(gas=st.integers(21_000, 29_000_000))
def test_a_margin_never_leaves_the_block(gas: int) -> None:
    assert gas <= with_margin(gas, 20, MARKET) <= MARKET.block_gas_limit


def test_intrinsic_gas() -> None:
    # EIP-2028: 4 per zero byte, 16 per other; EIP-3860: 2 per word of init code.
    assert intrinsic_gas(b"", creates=False) == 21_000
    assert intrinsic_gas(b"\x00\x01", creates=False) == 21_020
    assert intrinsic_gas(b"\x01" * 33, creates=True) == 21_000 + 32_000 + 33 * 16 + 4


QUIET = Market(block_number=7, block_gas_limit=30_000_000, base_fee_wei=0, priority_fee_wei=0)


def geth_replaces(old: Bid, new: Bid) -> bool:
    """go-ethereum, core/txpool/legacypool/list.go, list.Add."""
    return (
        new.max_fee_wei > old.max_fee_wei
        and new.priority_fee_wei > old.priority_fee_wei
        and new.max_fee_wei >= old.max_fee_wei * 110 // 100
        and new.priority_fee_wei >= old.priority_fee_wei * 110 // 100
    )


@given(
    fees=st.lists(st.tuples(st.integers(0, 10**11), st.integers(0, 10**11)), min_size=1, max_size=4),
    base=st.integers(0, 10**11),
    one_price=st.booleans(),
)
def test_a_replacement_is_what_geth_takes_and_what_the_market_asks(
    fees: list[tuple[int, int]], base: int, one_price: bool
) -> None:
    market = Market(1, 30_000_000, base, 10**9)
    known = [Bid(max(pair), min(pair)) for pair in fees]
    bid = outbid(known, market, 10**13, one_price=one_price)
    assert all(geth_replaces(old, bid) for old in known)
    assert bid.max_fee_wei >= (gas_price(Fees(), market) if one_price else dynamic_fee(Fees(), market)[0])
    assert bid.priority_fee_wei >= market.priority_fee_wei
    assert bid.priority_fee_wei <= bid.max_fee_wei
    assert not one_price or bid.priority_fee_wei == bid.max_fee_wei


def test_fees_are_raised_by_a_tenth_rounded_up() -> None:
    assert outbid([Bid(1_001, 11)], QUIET, 10**9, one_price=False) == Bid(1_102, 13)


def test_the_cap_stands_against_the_rule_and_only_bounds_the_market() -> None:
    assert outbid([Bid(1_000, 10)], QUIET, 1_100, one_price=False) == Bid(1_100, 11)
    assert outbid([Bid(1_000, 10)], MARKET, 1_500, one_price=False) == Bid(1_500, 20)
    with pytest.raises(WalletError) as refused:
        outbid([Bid(1_000, 10)], QUIET, 1_099, one_price=False)
    assert refused.value.reason is Reason.FEE_CAP_REACHED
    assert refused.value.details == {
        "field": "max_fee_per_gas_wei",
        "rule": "is at most 1099",
        "needed_wei": "1100",
        "cap_wei": "1099",
    }


def test_a_cap_below_the_base_fee_is_not_spent_on_a_replacement() -> None:
    with pytest.raises(WalletError) as refused:
        outbid([Bid(10, 1)], MARKET, 999, one_price=True)
    assert refused.value.reason is Reason.FEE_CAP_REACHED
    assert refused.value.details["needed_wei"] == "1000"
