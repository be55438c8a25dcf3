"""Signing transactions: the numbered steps of the design's step 4, many at a time. One transaction is a batch of one.

Each step is one statement, one append or one token batch for all items. An item that fails drops out with its error and
its neighbours go on. Whatever fails as a whole (database, evidence) raises: every item is to be tried again, and finds
what it left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from opentelemetry.trace import SpanContext, Tracer

from services.core.account_ids import AccountIds
from services.core.digests import TokenMade, recover_all
from services.core.entries import Kind
from services.core.errors import Reason, WalletError
from services.core.transactions import (
    UnsignedTransaction,
    attach_signature,
    decode_unsigned,
    signing_digest,
    tx_hash,
)
from services.runtime.evidence_log import Entry, EvidenceLog
from services.runtime.telemetry import parse_traceparent
from services.signer.bodies import Intended, failed_signature_body, signature_body
from services.signer.denials import intent_entry_id
from services.signer.frames import DigestToSign
from services.signer.item import Item, SignedTransaction, SigningRequest, is_allowed_intent, is_same_success
from services.signer.leaves import Leaf, Leaves
from services.signer.metrics import count_signatures
from services.signer.registering import Registering, fetch_leaves
from services.signer.replacing import check_superseding
from services.signer.store import FailedRow, NonceKey, SignedRow, Store
from services.signer.telemetry import SignatureSpans, describe_signature, describe_token_failure
from services.signer.workers import TokenFailure, TokenPool

# PostgreSQL's bigint. No account gets there: it is 300 million nonces a second for a thousand years.
_MAX_NONCE = 2**63 - 1
_VERIFY_SLICE = 25


class Signing:
    def __init__(
        self,
        registering: Registering,
        store: Store,
        evidence: EvidenceLog,
        leaves: Leaves,
        pool: TokenPool,
        account_ids: AccountIds,
        tracer: Tracer,
    ) -> None:
        self._registering = registering
        self._store = store
        self._evidence = evidence
        self._leaves = leaves
        self._pool = pool
        self._account_ids = account_ids
        self._tracer = tracer

    async def sign(self, requests: Sequence[SigningRequest]) -> list[SignedTransaction | WalletError]:
        """One result per request, in order.

        Raises:
            WalletError: INVALID_REQUEST with `index` if any request is malformed, and then none was looked at further;
                EVIDENCE_UNAVAILABLE or DATABASE_UNAVAILABLE, to be tried again.
        """
        # (1) Decode each unsigned transaction and compute its digest ourselves.
        spans = SignatureSpans(self._tracer)
        items = self._decode(requests, spans)
        try:
            # (2) Decide policy; (3) enter (chain, address, nonce) → link, and count velocity: a retry takes the stored
            # row, and never decides again.
            await self._registering.register(items)
            # (4) Append the intents: no token is asked before they are durable.
            await self._append_intents(items)
            # (5) The token signs; (6) low-s, recovery bit, verification.
            await self._ask_token(items, spans)
            # (7) Store the signature where there is none, and the link is neither voided nor superseded; else use the
            # stored one.
            await self._store_signatures(items)
            # (8) Append the signature entries.
            await self._append_signatures(items)
            # (9) Answer.
            return [_answer(item) for item in items]
        except BaseException as error:
            for item in items:
                item.error = item.error or _as_wallet_error(error)
            raise
        finally:
            count_signatures(items)
            for place, item in enumerate(items):
                if item.span.is_recording():
                    describe_signature(item, place, self._account_ids)
                item.span.end()

    async def void(self, transfer_id: str, cause: str) -> None:
        """Promise that this link is never signed.

        Raises:
            WalletError: ALREADY_SIGNED once a signature is stored.
        """
        await self._store.void(transfer_id, cause)

    # (1)

    def _decode(self, requests: Sequence[SigningRequest], spans: SignatureSpans) -> list[Item]:
        decoded: list[tuple[UnsignedTransaction, SpanContext]] = []
        seen: set[str] = set()
        for place, request in enumerate(requests):
            try:
                if request.transfer_id in seen:
                    raise _invalid("transfer_id", "is there once in a batch")
                transfer = parse_traceparent(request.traceparent)
                if transfer is None:
                    raise _invalid("traceparent", "is a W3C traceparent")
                tx = decode_unsigned(request.unsigned_tx)
                if tx.nonce > _MAX_NONCE:
                    raise _invalid("unsigned_tx", "has a nonce below 2**63")
                if request.supersedes is not None:
                    check_superseding(tx, request.from_address)
                decoded.append((tx, transfer))
            except WalletError as error:
                raise WalletError(error.reason, error.message, **{**error.details, "index": place}) from error
            seen.add(request.transfer_id)
        return [_item(request, tx, transfer, spans) for request, (tx, transfer) in zip(requests, decoded, strict=True)]

    # (4)

    async def _append_intents(self, items: Sequence[Item], adopting: bool = False) -> None:
        waiting = [item for item in _live(items) if item.intent_index is None]
        if not waiting:
            return
        entries = [item.entry(Kind.INTENT, intent_entry_id(item.digest.hex()), item.intent_body) for item in waiting]
        entries += await self._failure_entries([item for item in waiting if item.unsigned_before])
        outcomes = await self._evidence.append(entries)
        conflicts: list[Item] = []
        for item, outcome in zip(waiting, outcomes, strict=False):
            if isinstance(outcome, int):
                item.intent_index = outcome
            elif (
                not adopting
                and outcome.error.reason is Reason.ENTRY_CONFLICT
                and is_allowed_intent(item, outcome.stored_body)
            ):
                # The log is older than our row, as after a restored backup: what it holds is what happened.
                item.intent_body = outcome.stored_body
                conflicts.append(item)
            else:
                item.error = outcome.error
        if conflicts:
            await self._append_intents(conflicts, adopting=True)

    # (5), (6)

    async def _ask_token(self, items: Sequence[Item], spans: SignatureSpans) -> None:
        waiting = [item for item in _live(items) if item.signature_body is None]
        # Rows that were taken without looking at their key: the policy of today denies them, that of then did not.
        await fetch_leaves(self._leaves, [item for item in waiting if item.leaf is None and item.leaf_error is None])
        asking: list[tuple[Item, Leaf]] = []
        for item in waiting:
            if item.leaf is None:
                item.error = item.leaf_error
            else:
                asking.append((item, item.leaf))
        if not asking:
            return
        span = spans.start_token(asking[0][0].span if len(items) == 1 else None, len(asking))
        try:
            outcomes = await self._pool.sign([DigestToSign(leaf.sealed, item.digest) for item, leaf in asking])
            describe_token_failure(span, outcomes)
        finally:
            span.end()
        made: list[tuple[Item, TokenMade, float]] = []
        for (item, leaf), outcome in zip(asking, outcomes, strict=True):
            item.duration_ms = outcome.duration_ms
            if isinstance(outcome, TokenFailure):
                item.error, item.failed = outcome.error, outcome.asked
            else:
                one = TokenMade(outcome.raw_signature, item.digest, leaf.public_key)
                made.append((item, one, outcome.duration_ms))
        for first in range(0, len(made), _VERIFY_SLICE):
            if first:
                # Verifying costs 0.1 ms an item: let the other calls feed the child in between.
                await asyncio.sleep(0)
            self._verify(made[first : first + _VERIFY_SLICE])

    def _verify(self, made: Sequence[tuple[Item, TokenMade, float]]) -> None:
        # EIP-2 and the recovery bit, which is found by verifying.
        signatures = recover_all([one for _, one, _ in made])
        token = self._pool.identity
        for (item, _, duration_ms), signature in zip(made, signatures, strict=True):
            if isinstance(signature, WalletError):
                item.error, item.failed = signature, True
                continue
            item.raw_tx = attach_signature(item.request.unsigned_tx, signature)
            item.tx_hash = tx_hash(item.raw_tx)
            item.signature_body = signature_body(signature, item.raw_tx, item.tx_hash, duration_ms, token)

    # (7)

    async def _store_signatures(self, items: Sequence[Item]) -> None:
        failed = [item for item in items if item.failed]
        if failed:
            await self._store.store_failures(
                [(item.link_id, item.attempt, _failed_body(item, self._pool)) for item in failed]
            )
        new = [item for item in _live(items) if item.duration_ms is not None]
        if not new:
            return
        stored = await self._store.store_signatures(
            [
                SignedRow(item.link_id, item.attempt, item.intent_index, item.signature_body)
                for item in new
                if item.intent_index is not None and item.signature_body is not None
            ]
        )
        late = [item for item in new if item.link_id not in stored]
        if not late:
            return
        registered, _ = await self._store.find([(item.link_id, item.key) for item in late])
        for item in late:
            row = next(one for one in registered[item.link_id] if one.attempt == item.attempt)
            if row.signature_body is not None:
                item.use_signature(row.signature_body)
            else:
                reason = Reason.LINK_VOIDED if row.voided else Reason.SUPERSEDED
                item.error = WalletError(reason, reason.meaning)

    # (8)

    async def _append_signatures(self, items: Sequence[Item], adopting: bool = False) -> None:
        waiting = list(_live(items))
        entries = [
            item.entry(Kind.SIGNATURE, f"signature:{item.digest.hex()}", item.signature_body or b"") for item in waiting
        ]
        entries += await self._failure_entries([item for item in items if item.failed])
        if not entries:
            return
        outcomes = await self._evidence.append(entries)
        conflicts: list[Item] = []
        for item, outcome in zip(waiting, outcomes, strict=False):
            if isinstance(outcome, int):
                item.signature_index = outcome
            elif (
                not adopting
                and outcome.error.reason is Reason.ENTRY_CONFLICT
                and is_same_success(item, outcome.stored_body)
            ):
                # Outbox rule: the first writer wins, and its signature is the one that counts.
                item.use_signature(outcome.stored_body)
                conflicts.append(item)
            else:
                item.error = outcome.error
        if conflicts:
            await self._append_signatures(conflicts, adopting=True)

    async def _failure_entries(self, items: Sequence[Item]) -> list[Entry]:
        """Every failed signature of these links: those that a crash kept from the log are appended after it."""
        if not items:
            return []
        by_link = {item.link_id: item for item in items}
        rows: list[FailedRow] = await self._store.find_failures([(item.link_id, item.attempt) for item in items])
        return [
            by_link[row.link_id].entry(
                Kind.SIGNATURE, f"signature:{by_link[row.link_id].digest.hex()}:failed:{row.number}", row.body
            )
            for row in rows
        ]


def _item(request: SigningRequest, tx: UnsignedTransaction, transfer: SpanContext, spans: SignatureSpans) -> Item:
    intended = Intended(
        tx,
        request.unsigned_tx,
        signing_digest(request.unsigned_tx),
        request.from_address,
        request.key_id,
        request.key_version,
        request.requester,
    )
    key = NonceKey(tx.chain_id, request.from_address, tx.nonce)
    return Item(request, intended, key, spans.start(transfer))


def _as_wallet_error(error: BaseException) -> WalletError:
    """What a span says of a call that ended before its items did."""
    if isinstance(error, WalletError):
        return error
    reason = Reason.CANCELLED if isinstance(error, asyncio.CancelledError) else Reason.INTERNAL
    return WalletError(reason, reason.meaning)


def _live(items: Iterable[Item]) -> Iterable[Item]:
    return (item for item in items if item.error is None)


def _failed_body(item: Item, pool: TokenPool) -> bytes:
    assert item.error is not None
    assert item.duration_ms is not None
    return failed_signature_body(item.error, item.duration_ms, pool.identity)


def _answer(item: Item) -> SignedTransaction | WalletError:
    if item.error is not None:
        return item.error
    assert item.intent_index is not None
    assert item.signature_index is not None
    return SignedTransaction(item.link_id, item.raw_tx, item.tx_hash, item.intent_index, item.signature_index)


def _invalid(field: str, rule: str) -> WalletError:
    return WalletError(Reason.INVALID_REQUEST, f"{field}: the rule is that it {rule}", field=field, rule=rule)
