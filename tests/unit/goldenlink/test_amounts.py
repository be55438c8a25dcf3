"""Amounts as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.goldenlink.amounts import parse_value, show_wei
from tools.goldenlink.exits import Exit, Failure


@pytest.mark.parametrize(
    ("text", "wei"),
    [
        ("0", "0"),
        ("1000", "1000"),
        ("5 gwei", "5000000000"),
        ("0.25ether", "250000000000000000"),
        ("1_000 wei", "1000"),
        ("0.000000000000000001 ether", "1"),
    ],
)
def test_units_are_exact(text: str, wei: str) -> None:
    assert parse_value(text) == wei


@pytest.mark.parametrize("text", ["", "ether", "1.5", "0.0000000000000000001 ether", "5 dollars", "nan", "inf", "1e"])
def test_what_is_no_whole_number_of_wei_is_a_wrong_call(text: str) -> None:
    with pytest.raises(Failure) as failed:
        parse_value(text)
    assert failed.value.exit_code is Exit.USAGE
    assert failed.value.message.startswith("--value: ")


@given(st.integers(0, 2**256 - 1))
def test_what_is_shown_is_what_is_read(wei: int) -> None:
    assert parse_value(show_wei(str(wei))) == str(wei)
