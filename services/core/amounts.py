"""Amounts and names as they cross the wire: decimal strings of wei and gas, CAIP-2 chains, CAIP-10 accounts."""

from __future__ import annotations

import re

from services.core.addresses import Address, parse_address
from services.core.errors import Reason, WalletError

MAX_WEI = 2**256 - 1
MAX_GAS = 2**64 - 1
# EIP-2294: the largest chain id whose EIP-155 v still fits 64 bits.
MAX_CHAIN_ID = (2**64 - 1) // 2 - 36

# [0-9], not \d: \d accepts the digits of every script.
_DECIMAL = re.compile(r"0|[1-9][0-9]*")
_CHAIN = re.compile(r"eip155:([1-9][0-9]{0,19})")


def parse_wei(text: object, field: str) -> int:
    """A whole number of wei, 0 … 2**256-1, from its decimal string; `field` names it in errors.

    Raises:
        WalletError: INVALID_AMOUNT with `field` and `rule`.
    """
    return _parse_decimal(text, field, MAX_WEI, "2**256-1")


def parse_gas(text: object, field: str) -> int:
    """An amount of gas, 0 … 2**64-1, from its decimal string; `field` names it in errors.

    Raises:
        WalletError: INVALID_AMOUNT with `field` and `rule`.
    """
    return _parse_decimal(text, field, MAX_GAS, "2**64-1")


def parse_chain_id(text: object, field: str) -> int:
    """N of the CAIP-2 chain id `eip155:N`; `field` names it in errors.

    Raises:
        WalletError: INVALID_REQUEST with `field` and `rule`.
    """
    match = _CHAIN.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[1]) > MAX_CHAIN_ID:
        raise WalletError(Reason.INVALID_REQUEST, "not a chain id", field=field, rule="CAIP-2 eip155:N, EIP-2294")
    return int(match[1])


def format_chain_id(chain_id: int) -> str:
    """The CAIP-2 form `eip155:N`."""
    return f"eip155:{chain_id}"


def parse_account(text: object, field: str) -> tuple[int, Address]:
    """Chain number and address of the CAIP-10 account `eip155:N:0x…`; `field` names it in errors.

    Raises:
        WalletError: INVALID_REQUEST or INVALID_ADDRESS with `field` and `rule`.
    """
    if not isinstance(text, str) or text.count(":") != 2:
        raise WalletError(Reason.INVALID_REQUEST, "not an account", field=field, rule="CAIP-10 eip155:N:0x…")
    chain, _, address = text.rpartition(":")
    return parse_chain_id(chain, field), parse_address(address, field)


def format_account(chain_id: int, address: Address) -> str:
    """The CAIP-10 form with a lower-case address, as evidence bodies carry it."""
    return f"{format_chain_id(chain_id)}:0x{address.hex()}"


def _parse_decimal(text: object, field: str, maximum: int, maximum_text: str) -> int:
    # The size is checked before int(), whose time grows with the square of the digits.
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text):
        rule = "a decimal string of digits, without sign, fraction or leading zeros"
        raise WalletError(Reason.INVALID_AMOUNT, f"{field} is not a whole number", field=field, rule=rule)
    if len(text) > 78 or int(text) > maximum:
        rule = f"0 … {maximum_text}"
        raise WalletError(Reason.INVALID_AMOUNT, f"{field} is too large", field=field, rule=rule)
    return int(text)
