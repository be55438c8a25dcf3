import json
from pathlib import Path

import coincurve
import pytest

from services.core.addresses import address_of_public_key, checksum_address, parse_address
from services.core.errors import Reason, WalletError

EIP55_ADDRESSES = json.loads((Path(__file__).parents[2] / "vectors/eip55/addresses.json").read_text())


@pytest.mark.parametrize("text", EIP55_ADDRESSES)
def test_eip55_vectors(text: str) -> None:
    assert checksum_address(parse_address(text, "to")) == text
    assert parse_address(text.lower(), "to") == parse_address(text, "to")
    assert parse_address("0x" + text[2:].upper(), "to") == parse_address(text, "to")


@pytest.mark.parametrize(
    "text", [text for text in EIP55_ADDRESSES if text[2:] not in (text[2:].lower(), text[2:].upper())]
)
def test_one_letter_of_the_wrong_case_is_refused(text: str) -> None:
    for at in range(2, 42):
        if text[at].isalpha():
            with pytest.raises(WalletError) as refusal:
                parse_address(text[:at] + text[at].swapcase() + text[at + 1 :], "to")
            assert refusal.value.reason is Reason.INVALID_ADDRESS
            assert refusal.value.details == {"field": "to", "rule": "EIP-55"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        "5a" * 20,
        "0X" + "5a" * 20,
        "0x" + "5a" * 19,
        "0x" + "5a" * 21,
        "0x" + "5g" * 20,
        "0x" + "5a" * 20 + "\n",
        "0x" + "٥" * 40,
        None,
        5,
        b"0x" + b"5a" * 20,
    ],
)
def test_other_texts_are_refused(text: object) -> None:
    with pytest.raises(WalletError) as refusal:
        parse_address(text, "to")
    assert (refusal.value.reason, refusal.value.details["field"]) == (Reason.INVALID_ADDRESS, "to")


def test_both_forms_of_a_public_key_give_its_address() -> None:
    # The key of the EIP-155 example; its sender is the address that ethereum libraries state for it.
    key = coincurve.PrivateKey(b"\x46" * 32).public_key
    assert address_of_public_key(key.format()) == address_of_public_key(key.format(compressed=False))
    assert checksum_address(address_of_public_key(key.format())) == "0x9d8A62f656a8d1615C1294fd71e9CFb3E4855A4F"


@pytest.mark.parametrize("public_key", [b"", b"\x02" + b"\xff" * 32, b"\x04" + b"\x01" * 64, b"\x02" * 34])
def test_bytes_that_are_no_point_are_refused(public_key: bytes) -> None:
    with pytest.raises(WalletError) as refusal:
        address_of_public_key(public_key)
    assert refusal.value.details["field"] == "public_key"
