import pytest

from services.core.addresses import Address
from services.core.amounts import (
    MAX_CHAIN_ID,
    format_account,
    format_chain_id,
    parse_account,
    parse_chain_id,
    parse_gas,
    parse_wei,
)
from services.core.errors import Reason, WalletError


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("1", 1), (str(2**256 - 1), 2**256 - 1)])
def test_wei_from_decimal_text(text: str, value: int) -> None:
    assert parse_wei(text, "value_wei") == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "+1",
        "1.0",
        "1e18",
        "01",
        "00",
        " 1",
        "1 ",
        "1\n",
        "0x1",
        "1_000",
        "١",
        "²",
        None,
        1,
        1.5,
        True,
        str(2**256),
        "9" * 100000,
    ],
)
def test_other_amounts_are_refused_by_name(text: object) -> None:
    with pytest.raises(WalletError) as refusal:
        parse_wei(text, "value_wei")
    assert refusal.value.reason is Reason.INVALID_AMOUNT
    assert refusal.value.details["field"] == "value_wei"
    assert refusal.value.details["rule"]


def test_gas_ends_at_64_bits() -> None:
    assert parse_gas(str(2**64 - 1), "gas_limit") == 2**64 - 1
    with pytest.raises(WalletError, match=r"gas_limit is too large.*2\*\*64-1"):
        parse_gas(str(2**64), "gas_limit")


def test_chain_ids_round_trip() -> None:
    for number in (1, 31337, MAX_CHAIN_ID):
        assert parse_chain_id(format_chain_id(number), "chain_id") == number


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "eip155:",
        "eip155:0",
        "eip155:01",
        "eip155:-1",
        "EIP155:1",
        "eip155:1 ",
        "bip122:1",
        None,
        1,
        f"eip155:{MAX_CHAIN_ID + 1}",
        "eip155:" + "9" * 5000,
    ],
)
def test_other_chain_ids_are_refused(text: object) -> None:
    with pytest.raises(WalletError) as refusal:
        parse_chain_id(text, "chain_id")
    assert (refusal.value.reason, refusal.value.details["field"]) == (Reason.INVALID_REQUEST, "chain_id")


def test_accounts_are_written_in_lower_case() -> None:
    address = Address(bytes.fromhex("5aaeb6053f3e94c9b9a09f33669435e7ef1beaed"))
    account = format_account(1, address)
    assert account == "eip155:1:0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed"
    assert parse_account(account, "account") == (1, address)
    assert parse_account("eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "account") == (1, address)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("eip155:1", Reason.INVALID_REQUEST),
        ("eip155:1:0x00:1", Reason.INVALID_REQUEST),
        ("eip155:x:0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed", Reason.INVALID_REQUEST),
        ("eip155:1:0x5aaeb6053f3e94c9b9a09f33669435e7ef1beae", Reason.INVALID_ADDRESS),
        ("eip155:1:0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", Reason.INVALID_ADDRESS),
    ],
)
def test_other_accounts_are_refused(text: str, reason: Reason) -> None:
    with pytest.raises(WalletError) as refusal:
        parse_account(text, "account")
    assert (refusal.value.reason, refusal.value.details["field"]) == (reason, "account")
