"""A builder that builds something else is noticed, by the field that it changed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from services.core.addresses import Address
from services.core.errors import Reason, WalletError
from services.core.transactions import Eip1559Transaction, LegacyTransaction, encode_unsigned
from services.gateway.transfer import State, Transfer
from services.gateway.unsigned import check_as_asked

TO = Address(b"\x22" * 20)
ASKED = Eip1559Transaction(
    chain_id=31337,
    nonce=7,
    max_priority_fee_per_gas_wei=1,
    max_fee_per_gas_wei=2,
    gas_limit=21_000,
    to=TO,
    value_wei=5,
    data=b"\x01",
)


def transfer() -> Transfer:
    now = datetime.now(UTC)
    return Transfer(
        transfer_id="t-1",
        state=State.ACCEPTED,
        account_id="a-1",
        chain_id="eip155:31337",
        from_address=b"\x11" * 20,
        to_address=TO,
        value_wei="5",
        data=b"\x01",
        fees=b"",
        key_id="k-1",
        key_version=1,
        traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
        personal=None,
        created_at=now,
        updated_at=now,
    )


def test_what_was_asked_for_passes_whatever_its_type_and_fees() -> None:
    check_as_asked(transfer(), encode_unsigned(ASKED), 7)
    legacy = LegacyTransaction(
        chain_id=31337, nonce=7, gas_price_wei=9, gas_limit=90_000, to=TO, value_wei=5, data=b"\x01"
    )
    check_as_asked(transfer(), encode_unsigned(legacy), 7)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"chain_id": 1}, "chain_id"),
        ({"to": Address(b"\x33" * 20)}, "to"),
        ({"to": None}, "to"),
        ({"value_wei": 6}, "value_wei"),
        ({"data": b""}, "data"),
        ({"nonce": 8}, "nonce"),
    ],
)
def test_another_field_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(WalletError) as refused:
        check_as_asked(transfer(), encode_unsigned(replace(ASKED, **change)), 7)
    assert refused.value.reason is Reason.TERMS_MISMATCH
    assert refused.value.details["field"] == field


def test_bytes_that_are_no_transaction_are_refused() -> None:
    with pytest.raises(WalletError) as refused:
        check_as_asked(transfer(), b"\x05garbage", 7)
    assert refused.value.reason is Reason.TERMS_MISMATCH
