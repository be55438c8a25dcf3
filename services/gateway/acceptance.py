"""From a request to stored transfers, numbered; nothing is answered before the commit."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Link

from protos.wallet.v1 import keys_pb2, txbuilder_pb2
from services.core.canonical import canonical_json
from services.core.errors import Code, Reason, WalletError
from services.gateway.chain_health import ChainHealth
from services.gateway.credentials import Credential
from services.gateway.identifier import IdentifierSource
from services.gateway.metrics import count_transfers
from services.gateway.peers import Peers
from services.gateway.personal import Client, PersonalVault
from services.gateway.problems import FieldError, FieldErrors
from services.gateway.requests import TransferRequest
from services.gateway.resolved import check_resolved
from services.gateway.store import IdempotencyRecord, Store
from services.gateway.telemetry import TRANSFER, tracer
from services.gateway.transfer import AccountKey, State, Transfer
from services.runtime import attributes
from services.runtime.database_clock import DatabaseClock
from services.runtime.telemetry import format_traceparent, new_traceparent, stored_link

_RESOLVE_TIMEOUT_S = 20.0
# The builder names one bad item a call; more than so many are not looked for.
_MOST_BAD_ITEMS = 32


@dataclass(frozen=True)
class Submitter:
    """Who sends this request, under which key, in which trace."""

    credential: Credential
    client: Client
    idempotency_key: str
    traceparent: str


class Acceptance:
    def __init__(
        self,
        store: Store,
        peers: Peers,
        vault: PersonalVault,
        identifiers: IdentifierSource,
        chains: ChainHealth,
        clock: DatabaseClock,
        wake: Callable[[set[AccountKey]], None],
    ) -> None:
        self._store = store
        self._peers = peers
        self._vault = vault
        self._identifiers = identifiers
        self._chains = chains
        self._clock = clock
        self._wake = wake

    async def accept(self, requests: Sequence[TransferRequest], submitter: Submitter, *, batch: bool) -> list[Transfer]:
        """Store the transfers once for this key and body, and answer them as they stand now.

        Raises:
            WalletError: IDEMPOTENCY_KEY_REUSED; NOT_FOUND for an account; CHAIN_BROKEN; whatever rule a transfer
                breaks, with the index of each bad item of a batch. Nothing is stored then.
        """
        # (1) Seen before? The key belongs to the credential, the comparison to the parsed request's canonical form.
        body_sha256 = _request_hash(requests, batch=batch)
        credential_id = submitter.credential.credential_id
        record = await self._store.idempotency(credential_id, submitter.idempotency_key)
        if record is not None:
            return await self._replay(record, body_sha256)
        # (2) Whose keys: each distinct sender, once.
        accounts = await self._accounts(requests, batch=batch)
        for chain_id in {account.chain_id for account in accounts}:
            if (broken := self._chains.broken(chain_id)) is not None:
                raise broken
        # (3) What exactly: rules of the chain, call data encoded. All or nothing.
        terms = await self._terms(requests, accounts, batch=batch)
        for request, account, term in zip(requests, accounts, terms, strict=True):
            check_resolved(request, account, term)
        # (4) Under which names and traces, and when.
        now = await self._clock.now()
        transfers = [
            self._transfer(request, account, term, submitter, now, batch=batch)
            for request, account, term in zip(requests, accounts, terms, strict=True)
        ]
        # (5) One commit: transfers, their first events, the key. Whoever comes second with the key gets the first's.
        record = await self._store.accept(credential_id, submitter.idempotency_key, body_sha256, transfers)
        if record is not None:
            return await self._replay(record, body_sha256)
        count_transfers(transfer.state for transfer in transfers)
        # (6) The saga starts at once; should this process end here, any other finds the rows.
        self._wake({transfer.account_key for transfer in transfers})
        return transfers

    async def _replay(self, record: IdempotencyRecord, body_sha256: bytes) -> list[Transfer]:
        if record.body_sha256 != body_sha256:
            reason = Reason.IDEMPOTENCY_KEY_REUSED
            raise WalletError(reason, reason.meaning, field="Idempotency-Key", rule="one key, one body")
        return await self._store.transfers(record.transfer_ids)

    async def _accounts(self, requests: Sequence[TransferRequest], *, batch: bool) -> list[keys_pb2.Account]:
        senders = list(dict.fromkeys(_sender(request) for request in requests))
        answers = await asyncio.gather(*(self._account(sender) for sender in senders))
        by_sender = dict(zip(senders, answers, strict=True))
        accounts, errors, reason = [], [], Reason.NOT_FOUND
        for index, request in enumerate(requests):
            account, field = by_sender[_sender(request)], "account_id" if request.account_id else "from"
            if account is None:
                errors.append(FieldError(field=field, rule="names an account of this suite", index=index))
                continue
            if not account.address or request.chain_id not in (None, account.chain_id):
                reason = Reason.INVALID_REQUEST
                errors.append(FieldError(field="chain_id", rule="is the account's chain", index=index))
                continue
            accounts.append(account)
        if errors:
            raise FieldErrors(reason, errors if batch else [FieldError(field=e.field, rule=e.rule) for e in errors])
        return accounts

    async def _account(self, sender: tuple[str, str]) -> keys_pb2.Account | None:
        chain_id, name = sender
        if chain_id:
            address = keys_pb2.AccountAddress(chain_id=chain_id, address=bytes.fromhex(name[2:]))
            query = keys_pb2.GetAccountRequest(address=address)
        else:
            query = keys_pb2.GetAccountRequest(account_id=name)
        try:
            account: keys_pb2.Account = await self._peers.keys.GetAccount(query)
            return account
        except WalletError as error:
            if error.reason is Reason.NOT_FOUND:
                return None
            raise

    async def _terms(
        self, requests: Sequence[TransferRequest], accounts: Sequence[keys_pb2.Account], *, batch: bool
    ) -> list[Any]:
        messages = [_resolve_message(request, account) for request, account in zip(requests, accounts, strict=True)]
        places = list(range(len(messages)))
        errors: list[FieldError] = []
        reason = Reason.INVALID_REQUEST
        while places:
            call = txbuilder_pb2.ResolveTransfersRequest(transfers=[messages[place] for place in places])
            try:
                reply = await self._peers.txbuilder.ResolveTransfers(call, timeout=_RESOLVE_TIMEOUT_S)
            except WalletError as error:
                index = str(error.details.get("index", "0" if len(places) == 1 else ""))
                if not batch or error.reason.code is Code.UNAVAILABLE or not index.isdecimal():
                    raise _without_index(error) if not batch else error from None
                # The first bad item; look for the others without it.
                reason = error.reason if not errors else reason
                place = places.pop(int(index))
                rule = str(error.details.get("rule", error.message))
                errors.append(FieldError(field=str(error.details.get("field", "")), rule=rule, index=place))
                if len(errors) == _MOST_BAD_ITEMS:
                    break
                continue
            if not errors:
                return list(reply.terms)
            break
        raise FieldErrors(reason, errors)

    def _transfer(
        self,
        request: TransferRequest,
        account: keys_pb2.Account,
        terms: Any,
        submitter: Submitter,
        now: datetime,
        *,
        batch: bool,
    ) -> Transfer:
        transfer_id = self._identifiers.next("t")
        return Transfer(
            transfer_id=transfer_id,
            state=State.ACCEPTED,
            account_id=account.account_id,
            chain_id=terms.chain_id,
            from_address=terms.from_address,
            to_address=terms.to_address,
            value_wei=terms.value_wei,
            data=terms.data,
            fees=request.fee_options.SerializeToString(),
            key_id=account.key.key_id,
            key_version=account.key.version,
            # A single transfer lives in the request's trace; a batch item in its own, linked to the request's.
            traceparent=_item_traceparent(transfer_id, submitter.traceparent) if batch else submitter.traceparent,
            personal=self._vault.seal(transfer_id, submitter.client),
            created_at=now,
            updated_at=now,
        )


def _request_hash(requests: Sequence[TransferRequest], *, batch: bool) -> bytes:
    items = [request.model_dump(mode="json", by_alias=True, exclude_none=True) for request in requests]
    return hashlib.sha256(canonical_json({"batch": batch, "transfers": items})).digest()


def _sender(request: TransferRequest) -> tuple[str, str]:
    """("", account id), or (chain id, address)."""
    if request.account_id is not None:
        return "", request.account_id
    assert request.chain_id is not None
    assert request.from_ is not None
    return request.chain_id, request.from_.lower()


def _resolve_message(request: TransferRequest, account: keys_pb2.Account) -> txbuilder_pb2.TransferRequest:
    message = txbuilder_pb2.TransferRequest(
        chain_id=account.chain_id,
        from_address=account.address,
        to_address=request.to or "",
        value_wei=request.value_wei or "",
        fees=request.fee_options,
    )
    if request.data is not None:
        message.data_hex = request.data
    if request.call is not None:
        message.call.signature = request.call.signature
        message.call.arguments_json = request.arguments_json
    if request.erc20 is not None:
        message.erc20.token_address = request.erc20.token
        message.erc20.amount = request.erc20.amount
    return message


def _without_index(error: WalletError) -> WalletError:
    details = {name: value for name, value in error.details.items() if name != "index"}
    return WalletError(error.reason, error.message, **details)


def _item_traceparent(transfer_id: str, request_traceparent: str) -> str:
    links: list[Link] = [stored_link(request_traceparent)]
    span = tracer.start_span(
        TRANSFER, context=Context(), links=links, attributes={attributes.WALLET_LINK_ID: transfer_id}
    )
    span.end()
    context = span.get_span_context()
    return format_traceparent(context) if context.is_valid else new_traceparent()
