"""Ethereum addresses: 20 bytes inside, EIP-55 hex towards people."""

from __future__ import annotations

import re
from typing import NewType

import coincurve

from services.core.digests import keccak256
from services.core.errors import Reason, WalletError

Address = NewType("Address", bytes)

_HEX_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")


def parse_address(text: object, field: str) -> Address:
    """The address written as `0x` and 40 hex digits; `field` names it in errors.

    All lower or all upper case carries no checksum and is accepted; mixed case must be the EIP-55 form.

    Raises:
        WalletError: INVALID_ADDRESS with `field` and `rule`.
    """
    if not isinstance(text, str) or not _HEX_ADDRESS.fullmatch(text):
        raise WalletError(Reason.INVALID_ADDRESS, "not an address", field=field, rule="0x and 40 hex digits")
    digits = text[2:]
    address = Address(bytes.fromhex(digits))
    if digits not in (digits.lower(), digits.upper()) and text != checksum_address(address):
        raise WalletError(Reason.INVALID_ADDRESS, "the address's checksum is wrong", field=field, rule="EIP-55")
    return address


def checksum_address(address: Address) -> str:
    """The EIP-55 form: a letter is upper case where the keccak of the lower-case digits has a nibble ≥ 8."""
    digits = address.hex()
    nibbles = keccak256(digits.encode("ascii")).hex()
    return "0x" + "".join(
        digit.upper() if nibble >= "8" else digit for digit, nibble in zip(digits, nibbles, strict=False)
    )


def address_of_public_key(public_key: bytes) -> Address:
    """The address of a secp256k1 public key in SEC1 form, 33 bytes (compressed) or 65 (uncompressed).

    Raises:
        WalletError: INVALID_REQUEST if the bytes are not a point of the curve.
    Source: Yellow Paper, appendix F: the last 20 bytes of keccak-256 of the 64-byte point.
    """
    try:
        point = coincurve.PublicKey(public_key).format(compressed=False)
    except ValueError as error:
        raise WalletError(
            Reason.INVALID_REQUEST, "not a public key", field="public_key", rule="SEC1 point of secp256k1"
        ) from error
    return Address(keccak256(point[1:])[12:])
