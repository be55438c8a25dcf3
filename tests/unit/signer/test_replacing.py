"""What may stand in another transaction's place."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.addresses import Address
from services.core.errors import Reason, WalletError
from services.core.transactions import (
    Eip1559Transaction,
    Eip2930Transaction,
    LegacyTransaction,
    UnsignedTransaction,
)
from services.signer.replacing import check_bump, check_superseding, fee_wei

SENDER, OTHER = Address(b"\x01" * 20), Address(b"\x02" * 20)
DYNAMIC = Eip1559Transaction(1, 7, 10, 20, 21_000, OTHER, 5, b"", ((OTHER, (bytes(32),)),))
PRICED = Eip2930Transaction(1, 7, 20, 21_000, OTHER, 5)
LEGACY = LegacyTransaction(1, 7, 20, 21_000, OTHER, 5)


def refusal(last: UnsignedTransaction, tx: UnsignedTransaction) -> Reason | None:
    try:
        check_bump(last, tx)
    except WalletError as error:
        return error.reason
    return None


def test_a_bump_pays_more_and_does_the_same() -> None:
    assert refusal(DYNAMIC, replace(DYNAMIC, max_priority_fee_per_gas_wei=11, max_fee_per_gas_wei=21)) is None
    assert refusal(PRICED, replace(PRICED, gas_price_wei=21)) is None
    assert refusal(LEGACY, replace(LEGACY, gas_price_wei=21)) is None


@given(st.integers(0, 40), st.integers(0, 40))
def test_every_price_has_to_rise(priority: int, most: int) -> None:
    if priority > most:
        return
    tx = replace(DYNAMIC, max_priority_fee_per_gas_wei=priority, max_fee_per_gas_wei=most)
    assert (refusal(DYNAMIC, tx) is None) == (priority > 10 and most > 20)


@pytest.mark.parametrize(
    "tx",
    [
        replace(DYNAMIC, chain_id=2),
        replace(DYNAMIC, nonce=8),
        replace(DYNAMIC, to=SENDER),
        replace(DYNAMIC, to=None),
        replace(DYNAMIC, value_wei=6),
        replace(DYNAMIC, data=b"\x01"),
        replace(DYNAMIC, gas_limit=22_000),
        replace(DYNAMIC, access_list=()),
        PRICED,
        LEGACY,
    ],
)
def test_a_bump_changes_nothing_else(tx: UnsignedTransaction) -> None:
    if isinstance(tx, Eip1559Transaction):
        tx = replace(tx, max_priority_fee_per_gas_wei=11, max_fee_per_gas_wei=21)
    assert refusal(DYNAMIC, tx) is Reason.ALREADY_EXISTS


def test_what_supersedes_moves_nothing() -> None:
    nothing = Eip1559Transaction(1, 7, 1, 2, 21_000, SENDER, 0)
    check_superseding(nothing, SENDER)
    for tx in (
        replace(nothing, to=OTHER),
        replace(nothing, to=None),
        replace(nothing, value_wei=1),
        replace(nothing, data=b"\x00"),
    ):
        with pytest.raises(WalletError):
            check_superseding(tx, SENDER)


def test_the_most_that_a_transaction_pays_for_gas() -> None:
    assert fee_wei(DYNAMIC) == fee_wei(PRICED) == fee_wei(LEGACY) == 420_000
