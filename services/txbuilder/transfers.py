"""Transfers as clients write them → terms: call data encoded, every field checked. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from services.core.abi import encode_call, erc20_transfer, selector
from services.core.addresses import Address, parse_address
from services.core.amounts import format_chain_id, parse_chain_id, parse_wei
from services.core.canonical import canonical_json, from_hex, to_hex
from services.core.errors import Reason, WalletError, refuse
from services.core.transactions import (
    MAX_DATA_BYTES,
    AccessList,
    Eip1559Transaction,
    Eip2930Transaction,
    LegacyTransaction,
    UnsignedTransaction,
)
from services.txbuilder.fees import Fees, Market, dynamic_fee, gas_price


@dataclass(frozen=True, slots=True)
class Terms:
    """What a transfer does. `to` None creates a contract."""

    chain_id: int
    sender: Address
    to: Address | None
    value_wei: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Options:
    """How it is built. `kind` is the EIP-2718 type, 0 for legacy."""

    kind: int
    fees: Fees
    access_list: AccessList = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """A transfer to be built."""

    transfer_id: str
    terms: Terms
    options: Options

    @property
    def sha256(self) -> bytes:
        """Names the request: a repeated call with another one is refused."""
        terms, options = self.terms, self.options
        return sha256(
            canonical_json(
                [
                    str(terms.chain_id),
                    to_hex(terms.sender),
                    to_hex(terms.to or b""),
                    str(terms.value_wei),
                    to_hex(terms.data),
                    options.kind,
                    [str(fee) for fee in (options.fees.gas_limit, options.fees.gas_price_wei)],
                    [str(fee) for fee in (options.fees.max_fee_per_gas_wei, options.fees.max_priority_fee_per_gas_wei)],
                    [[to_hex(address), [to_hex(key) for key in keys]] for address, keys in options.access_list],
                ]
            )
        ).digest()


def resolve_data(data_hex: str) -> bytes:
    """Raises WalletError INVALID_CALLDATA with field and rule."""
    if len(data_hex) > 2 + 2 * MAX_DATA_BYTES:
        raise WalletError(Reason.INVALID_CALLDATA, "call data is too large", field="data", rule="at most 128 KiB")
    try:
        return from_hex(data_hex.lower(), "data")
    except WalletError:
        raise WalletError(
            Reason.INVALID_CALLDATA, "data is not hex", field="data", rule="0x and whole bytes of hex"
        ) from None


def resolve_call(signature: str, arguments_json: str) -> bytes:
    """Call data of a signature and its JSON arguments. Raises WalletError INVALID_CALLDATA with field and rule."""
    try:
        arguments = json.loads(arguments_json or "[]")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, list):
        raise WalletError(
            Reason.INVALID_CALLDATA, "arguments are not a list", field="call.arguments", rule="a JSON list"
        )
    with _named("call.signature"):
        selector(signature)
    with _named("call.arguments"):
        return encode_call(signature, arguments)


@contextmanager
def _named(field: str) -> Iterator[None]:
    """What `core` refuses in call data, the client wrote in this field."""
    try:
        yield
    except WalletError as error:
        raise WalletError(error.reason, error.message, **{**error.details, "field": field}) from None


def resolve_erc20(to_address: str, token_address: str, amount: str) -> tuple[Address, bytes]:
    """(token contract, call data) of a token transfer by name."""
    if not to_address:
        refuse("to", "is there for a token transfer")
    receiver = parse_address(to_address, "to")
    token = parse_address(token_address, "erc20.token")
    return token, erc20_transfer(receiver, parse_wei(amount, "erc20.amount"))


def check_chain(chain_id: str, known: frozenset[str]) -> int:
    """Raises WalletError INVALID_REQUEST, or UNKNOWN_CHAIN with the chains that are configured."""
    number = parse_chain_id(chain_id, "chain_id")
    if format_chain_id(number) not in known:
        raise WalletError(
            Reason.UNKNOWN_CHAIN, "the chain is not configured", field="chain_id", rule=f"is one of {sorted(known)}"
        )
    return number


def check_options(options: Options) -> None:
    """Fee fields belong to their transaction type. Raises WalletError INVALID_REQUEST with field and rule."""
    fees = options.fees
    if options.kind == 2:
        if fees.gas_price_wei is not None:
            refuse("gas_price_wei", "is for legacy and access_list transactions")
        cap, tip = fees.max_fee_per_gas_wei, fees.max_priority_fee_per_gas_wei
        if cap is not None and tip is not None and tip > cap:
            # EIP-1559: a transaction that tips more than it is ready to pay is invalid.
            refuse("max_priority_fee_per_gas_wei", "is at most max_fee_per_gas_wei")
    else:
        for field in ("max_fee_per_gas_wei", "max_priority_fee_per_gas_wei"):
            if getattr(fees, field) is not None:
                refuse(field, "is for dynamic_fee transactions")
    if options.access_list and options.kind == 0:
        refuse("access_list", "is for access_list and dynamic_fee transactions")


def compose(draft: Draft, nonce: int, gas_limit: int, market: Market) -> tuple[UnsignedTransaction, int]:
    """The unsigned transaction, and the most that its gas can cost in wei.

    Raises:
        WalletError: FEE_CAP_BELOW_BASE_FEE; INVALID_REQUEST for a field out of its range.
    """
    terms, options = draft.terms, draft.options
    chain_id, to, value_wei, data = terms.chain_id, terms.to, terms.value_wei, terms.data
    if options.kind == 2:
        cap, tip = dynamic_fee(options.fees, market)
        tx: UnsignedTransaction = Eip1559Transaction(
            chain_id, nonce, tip, cap, gas_limit, to, value_wei, data, options.access_list
        )
        return tx, cap * gas_limit
    price = gas_price(options.fees, market)
    if options.kind == 1:
        tx = Eip2930Transaction(chain_id, nonce, price, gas_limit, to, value_wei, data, options.access_list)
    else:
        tx = LegacyTransaction(chain_id, nonce, price, gas_limit, to, value_wei, data)
    return tx, price * gas_limit
