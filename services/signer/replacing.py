"""Transactions in place of others: fee bumps of one link, and the links that supersede one. Pure."""

from __future__ import annotations

from dataclasses import replace

from services.core.addresses import Address
from services.core.errors import Reason, WalletError, refuse
from services.core.transactions import Eip1559Transaction, UnsignedTransaction

# What the intent of one says in place of the rules of a policy.
BUMP_RULE = "replacement: the transaction that is signed, at a higher fee"
SUPERSEDING_RULE = "superseding: nothing, from an account to itself, in place of another transaction"


def fee_wei(tx: UnsignedTransaction) -> int:
    """The most that a transaction can pay for gas."""
    return tx.gas_limit * _prices(tx)[0]


def check_bump(last: UnsignedTransaction, tx: UnsignedTransaction) -> None:
    """Raises WalletError ALREADY_EXISTS where more than the fees differs; INVALID_REQUEST where they do not rise, which
    no node takes in place of the other."""
    if _with_prices_of(tx, last) != last:
        raise WalletError(Reason.ALREADY_EXISTS, "the link is registered for another transaction", field="unsigned_tx")
    if any(new <= old for new, old in zip(_prices(tx), _prices(last), strict=True)):
        refuse("unsigned_tx", "pays more for gas than the one that it replaces")


def check_superseding(tx: UnsignedTransaction, sender: Address) -> None:
    """Raises WalletError INVALID_REQUEST unless it moves nothing but its fee."""
    if tx.to != sender or tx.value_wei or tx.data:
        refuse("unsigned_tx", "moves nothing, from an account to itself, where it supersedes another")


def _prices(tx: UnsignedTransaction) -> tuple[int, ...]:
    if isinstance(tx, Eip1559Transaction):
        return tx.max_fee_per_gas_wei, tx.max_priority_fee_per_gas_wei
    return (tx.gas_price_wei,)


def _with_prices_of(tx: UnsignedTransaction, last: UnsignedTransaction) -> UnsignedTransaction | None:
    """`tx` at the fees of `last`; None where they are of different kinds."""
    if isinstance(tx, Eip1559Transaction):
        if not isinstance(last, Eip1559Transaction):
            return None
        return replace(
            tx,
            max_fee_per_gas_wei=last.max_fee_per_gas_wei,
            max_priority_fee_per_gas_wei=last.max_priority_fee_per_gas_wei,
        )
    return None if type(tx) is not type(last) else replace(tx, gas_price_wei=last.gas_price_wei)
