"""From terms to unsigned transactions: estimate first, then reserve nonces under the lock, one account a call."""

from __future__ import annotations

import logging

from services.core.account_ids import AccountIds
from services.core.amounts import format_chain_id
from services.core.errors import Reason, WalletError
from services.core.transactions import encode_unsigned
from services.runtime.lock import LeaseLock
from services.runtime.metric_names import WALLET_NONCE_ALLOCATIONS_WITHOUT_LOCK
from services.runtime.metrics import counter
from services.txbuilder.chain import AccountState, ChainReader
from services.txbuilder.fees import Market, check_gas_limit, intrinsic_gas, with_margin
from services.txbuilder.store import AccountKey, NonceSequence, Reservation, Store
from services.txbuilder.transfers import Draft, compose

_log = logging.getLogger(__name__)
_without_lock = counter(WALLET_NONCE_ALLOCATIONS_WITHOUT_LOCK)

Built = Reservation | WalletError
Estimated = tuple[Draft, int]


class Builder:
    def __init__(
        self,
        store: Store,
        chain: ChainReader,
        lock: LeaseLock,
        account_ids: AccountIds,
        *,
        gas_margin_percent: int,
        fee_cap_wei: int,
    ) -> None:
        self._store = store
        self._chain = chain
        self._lock = lock
        self._account_ids = account_ids
        self._gas_margin_percent = gas_margin_percent
        self._fee_cap_wei = fee_cap_wei

    async def build(self, drafts: list[Draft]) -> list[Built]:
        """Reserve a nonce for each draft of one account and build it; the stored bytes for those built before.

        Raises:
            WalletError: LEASE_LOST or NONCE_CONFLICT (start the step again), NODE_UNAVAILABLE, DATABASE_UNAVAILABLE.
        """
        # (1) What is built already is answered from its row.
        found = await self._store.find([draft.transfer_id for draft in drafts])
        results: dict[str, Built] = {
            draft.transfer_id: _stored(draft, found[draft.transfer_id])
            for draft in drafts
            if draft.transfer_id in found
        }
        fresh = [draft for draft in drafts if draft.transfer_id not in results]
        if fresh:
            results.update(await self._build_fresh(fresh))
        return [results[draft.transfer_id] for draft in drafts]

    async def _build_fresh(self, drafts: list[Draft]) -> dict[str, Built]:
        terms = drafts[0].terms
        account = AccountKey(format_chain_id(terms.chain_id), terms.sender)
        # (2) Ask the chain, before any lock: fees, gas, code.
        market = await self._chain.market(account.chain_id)
        gas = await self._estimate(account.chain_id, drafts, market)
        results: dict[str, Built] = {
            draft.transfer_id: limit for draft, limit in zip(drafts, gas, strict=True) if isinstance(limit, WalletError)
        }
        ready = [(draft, limit) for draft, limit in zip(drafts, gas, strict=True) if isinstance(limit, int)]
        if not ready:
            return results
        # (3) Keep contenders apart; without Redis the row lock alone does it.
        async with self._lock.hold(f"nonce:{self._account_ids.of(terms.chain_id, terms.sender)}") as held:
            # (4) Fence whoever held it before and was paused.
            if held:
                epoch = await self._store.raise_epoch(account)
            else:
                _without_lock.add(1)
                _log.warning("the nonce lock cannot be had; going on through the row lock")
                epoch = await self._store.read_epoch(account)
            # (5) The account as the chain has it now.
            state = await self._chain.account_state(account.chain_id, account.address)
            committed = await self._store.committed_wei(account, state.mined_nonce)

            def allocate(sequence: NonceSequence) -> list[Reservation]:
                built = self._compose_all(ready, sequence, market, state, committed)
                results.update(built)
                return [one for one in built.values() if isinstance(one, Reservation)]

            # (6) One commit: fence, nonces, transactions.
            await self._store.reserve(account, epoch, state.mined_nonce, state.finalized_nonce, allocate)
        return results

    def _compose_all(
        self, ready: list[Estimated], sequence: NonceSequence, market: Market, state: AccountState, committed_wei: int
    ) -> dict[str, Built]:
        """Build in order while the balance lasts; what cannot be built takes no nonce."""
        built: dict[str, Built] = {}
        for draft, gas_limit in ready:
            try:
                reservation = self._compose(draft, sequence.peek(), gas_limit, market)
                if committed_wei + reservation.cost_wei > state.balance_wei:
                    raise WalletError(
                        Reason.INSUFFICIENT_FUNDS,
                        "value and the largest fee are more than the balance less what is committed already",
                        field="value_wei",
                        rule="is within the balance, fee included",
                        balance_wei=str(state.balance_wei),
                        committed_wei=str(committed_wei),
                        cost_wei=str(reservation.cost_wei),
                    )
            except WalletError as error:
                built[draft.transfer_id] = error
                continue
            sequence.take()
            committed_wei += reservation.cost_wei
            built[draft.transfer_id] = reservation
        return built

    async def draft(self, draft: Draft) -> Reservation:
        """The transaction with the account's next nonce, unreserved: for the record of a denial, never to be signed."""
        account = AccountKey(format_chain_id(draft.terms.chain_id), draft.terms.sender)
        market = await self._chain.market(account.chain_id)
        state = await self._chain.account_state(account.chain_id, account.address)
        nonce = await self._store.next_nonce(account, state.mined_nonce, state.finalized_nonce)
        # What would revert, or cannot be paid for, is recorded all the same: no estimate is asked for.
        gas_limit = draft.options.fees.gas_limit or intrinsic_gas(draft.terms.data, draft.terms.to is None)
        return self._compose(draft, nonce, gas_limit, market)

    def _compose(self, draft: Draft, nonce: int, gas_limit: int, market: Market) -> Reservation:
        tx, max_fee_wei = compose(draft, nonce, gas_limit, market)
        if max_fee_wei > self._fee_cap_wei * gas_limit:
            raise WalletError(
                Reason.INVALID_REQUEST,
                "the fee per gas is above the configured cap",
                field="max_fee_per_gas_wei",
                rule=f"is at most {self._fee_cap_wei}",
            )
        return Reservation(
            draft.transfer_id,
            nonce,
            encode_unsigned(tx),
            draft.sha256,
            gas_limit,
            draft.terms.value_wei + max_fee_wei,
            max_fee_wei,
        )

    async def _estimate(self, chain_id: str, drafts: list[Draft], market: Market) -> list[int | WalletError]:
        """A gas limit per draft: the caller's, 21,000 for a transfer to an address without code, else the node's."""
        limits: list[int | WalletError | None] = [draft.options.fees.gas_limit for draft in drafts]
        plain = [
            index
            for index, draft in enumerate(drafts)
            if limits[index] is None and not draft.terms.data and draft.terms.to and not draft.options.access_list
        ]
        without_code = await self._chain.without_code(
            chain_id, {to for index in plain if (to := drafts[index].terms.to) is not None}
        )
        for index in plain:
            if drafts[index].terms.to in without_code:
                limits[index] = 21_000
        unknown = [index for index, limit in enumerate(limits) if limit is None]
        estimates = await self._chain.estimate_gas(chain_id, [drafts[index] for index in unknown])
        for index, estimate in zip(unknown, estimates, strict=True):
            limits[index] = (
                with_margin(estimate, self._gas_margin_percent, market) if isinstance(estimate, int) else estimate
            )
        return [_checked(limit, market) for limit in limits if limit is not None]


def _checked(limit: int | WalletError, market: Market) -> int | WalletError:
    if isinstance(limit, int):
        try:
            check_gas_limit(limit, market)
        except WalletError as error:
            return error
    return limit


def _stored(draft: Draft, reservation: Reservation | None) -> Built:
    if reservation is None:
        return WalletError(Reason.LINK_VOIDED, "the transfer was voided and its nonce given back", field="transfer_id")
    if reservation.terms_sha256 != draft.sha256:
        return WalletError(
            Reason.ALREADY_EXISTS, "the transfer was built from other terms", field="terms", rule="are those of before"
        )
    return reservation
