"""Fee bumps and superseding: another transaction for a nonce that has one, or that nobody holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from services.core.amounts import parse_chain_id
from services.core.canonical import canonical_json, to_hex
from services.core.errors import Reason, WalletError, refuse
from services.core.transactions import (
    Eip1559Transaction,
    Eip2930Transaction,
    LegacyTransaction,
    UnsignedTransaction,
    decode_unsigned,
    encode_unsigned,
)
from services.txbuilder.chain import ChainReader
from services.txbuilder.fees import Bid, Market, check_fee_cap, outbid
from services.txbuilder.replacement_store import Replaceable, ReplacementStore, Version
from services.txbuilder.store import AccountKey, Reservation, Store

# A transfer of nothing, without data, to an account that is no contract.
_GAS_LIMIT = 21_000


class Replacer:
    def __init__(self, store: Store, replacements: ReplacementStore, chain: ChainReader, *, fee_cap_wei: int) -> None:
        self._store = store
        self._replacements = replacements
        self._chain = chain
        self._fee_cap_wei = fee_cap_wei

    async def bump(self, transfer_id: str, number: int) -> tuple[Replaceable, Version]:
        """Replacement `number` (from 1) of a transfer or superseding link: its fees raised, all else the same.

        Raises:
            WalletError: FEE_CAP_REACHED when the nodes' rule asks for more than the cap or the balance; INVALID_REQUEST
                when the replacement before it was not built; NOT_FOUND, LINK_VOIDED, SUPERSEDED, NODE_UNAVAILABLE.
        """
        found = await self._replacements.find(transfer_id)
        if number < 1 or number > len(found.versions):
            refuse("replacement", f"is one that was built, or the next: {len(found.versions)}")
        if number < len(found.versions):
            return found, found.versions[number]
        market = await self._chain.market(found.account.chain_id)
        tx = _raise_fees(decode_unsigned(found.versions[-1].unsigned_tx), market, self._fee_cap_wei)
        max_fee_wei = _bid(tx).max_fee_wei * tx.gas_limit
        cost_wei = tx.value_wei + max_fee_wei
        await self._check_balance(found, tx, cost_wei)
        version = Version(number, encode_unsigned(tx), max_fee_wei)
        return found, await self._replacements.replace(transfer_id, version, cost_wei)

    async def _check_balance(self, found: Replaceable, tx: UnsignedTransaction, cost_wei: int) -> None:
        """A replacement that the account cannot pay would be refused by the nodes, and stand in the first one's way."""
        state = await self._chain.account_state(found.account.chain_id, found.account.address)
        committed_wei = await self._store.committed_wei(found.account, state.mined_nonce)
        spare_wei = max(0, state.balance_wei - committed_wei)
        affordable_wei = (found.cost_wei + spare_wei - tx.value_wei) // tx.gas_limit
        check_fee_cap("balance", -(-(cost_wei - tx.value_wei) // tx.gas_limit), affordable_wei)

    async def supersede(self, transfer_id: str, account: AccountKey, nonce: int, supersedes: str) -> Reservation:
        """A transfer of nothing from the account to itself, whose fees outbid what is known for the nonce.

        Raises:
            WalletError: FEE_CAP_REACHED; NONCE_SPENT when the nonce is final on the chain; NONCE_REGISTERED when it is
                another's; INVALID_REQUEST when it was never given out; NONCE_CONFLICT to start again; ALREADY_EXISTS
                when the link was built for another nonce; LINK_VOIDED, NOT_FOUND, NODE_UNAVAILABLE, NODES_DISAGREE.
        """
        terms_sha256 = sha256(
            canonical_json([account.chain_id, to_hex(account.address), str(nonce), supersedes])
        ).digest()
        found = await self._store.find([transfer_id])
        if transfer_id in found:
            return _same(found[transfer_id], terms_sha256)
        market = await self._chain.market(account.chain_id)
        state = await self._chain.account_state(account.chain_id, account.address)
        if nonce < state.finalized_nonce:
            raise WalletError(Reason.NONCE_SPENT, Reason.NONCE_SPENT.meaning, field="nonce")

        def compose(known: Sequence[bytes]) -> Reservation:
            tx = _self_transfer(account, nonce, [decode_unsigned(one) for one in known], market, self._fee_cap_wei)
            max_fee_wei = _bid(tx).max_fee_wei * tx.gas_limit
            unsigned_tx = encode_unsigned(tx)
            return Reservation(transfer_id, nonce, unsigned_tx, terms_sha256, tx.gas_limit, max_fee_wei, max_fee_wei)

        return await self._replacements.supersede(account, nonce, supersedes, compose)


def _same(stored: Reservation | None, terms_sha256: bytes) -> Reservation:
    if stored is None:
        raise WalletError(Reason.LINK_VOIDED, "the link was voided and its nonce given back", field="transfer_id")
    if stored.terms_sha256 != terms_sha256:
        raise WalletError(
            Reason.ALREADY_EXISTS, "the link was built for another nonce", field="transfer_id", rule="is that of before"
        )
    return stored


def _bid(tx: UnsignedTransaction) -> Bid:
    if isinstance(tx, Eip1559Transaction):
        return Bid(tx.max_fee_per_gas_wei, tx.max_priority_fee_per_gas_wei)
    return Bid(tx.gas_price_wei, tx.gas_price_wei)


def _raise_fees(tx: UnsignedTransaction, market: Market, cap_wei: int) -> UnsignedTransaction:
    bid = outbid([_bid(tx)], market, cap_wei, one_price=not isinstance(tx, Eip1559Transaction))
    if isinstance(tx, Eip1559Transaction):
        return replace(tx, max_fee_per_gas_wei=bid.max_fee_wei, max_priority_fee_per_gas_wei=bid.priority_fee_wei)
    return replace(tx, gas_price_wei=bid.max_fee_wei)


def _self_transfer(
    account: AccountKey, nonce: int, known: Sequence[UnsignedTransaction], market: Market, cap_wei: int
) -> UnsignedTransaction:
    """Of the kind of what it supersedes, since that is what the chain takes; EIP-1559 where there is nothing."""
    chain_id, me = parse_chain_id(account.chain_id, "chain_id"), account.address
    one_price = bool(known) and not isinstance(known[-1], Eip1559Transaction)
    bid = outbid([_bid(tx) for tx in known], market, cap_wei, one_price=one_price)
    if not one_price:
        return Eip1559Transaction(chain_id, nonce, bid.priority_fee_wei, bid.max_fee_wei, _GAS_LIMIT, me, 0)
    kind = Eip2930Transaction if isinstance(known[-1], Eip2930Transaction) else LegacyTransaction
    return kind(chain_id, nonce, bid.max_fee_wei, _GAS_LIMIT, me, 0)
