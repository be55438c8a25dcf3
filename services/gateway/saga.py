"""The saga: a group of one account's transfers, from their rows to the broadcaster, in numbered steps.

Every step asks a peer that is idempotent by transfer id, then commits what it answered. A crash between the two repeats
the question and gets the same answer: the same unsigned bytes, the same signature, the same submission. So the row
names the last finished step, and any worker goes on from it. One transfer is asked by the single-item call, more by
the batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode

from protos.wallet.v1 import broadcaster_pb2, signer_pb2, txbuilder_pb2
from services.core.errors import Code, Reason, WalletError
from services.gateway.changes import Changes
from services.gateway.peers import Peers
from services.gateway.personal import Client, PersonalVault, requester
from services.gateway.store import Store
from services.gateway.telemetry import FAILURE, SAGA, SAGA_GROUP, tracer
from services.gateway.transfer import State, Transfer, failure_document, failure_error
from services.gateway.unsigned import check_as_asked
from services.runtime import attributes
from services.runtime.rpc_errors import from_item_error
from services.runtime.telemetry import stored_context, stored_link

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# Not now, or outcome unknown: the step is asked again. Everything else is an answer.
_RETRIED = frozenset({Code.UNAVAILABLE, Code.ABORTED, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.RESOURCE_EXHAUSTED})
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 2.0
_SINGLE_TIMEOUT_S = 10.0
_BATCH_TIMEOUT_S = 30.0
_FAILURES_AT_ONCE = 16
_NO_CLIENT = Client("", "", "")


def is_retried(error: WalletError) -> bool:
    return error.reason.code in _RETRIED


def retry_delay_s(attempts: int) -> float:
    return min(_LONGEST_DELAY_S, _FIRST_DELAY_S * float(1 << min(attempts, 8)))


@dataclass
class Round:
    """What one run over a group finds out."""

    failures: list[tuple[Transfer, WalletError]] = field(default_factory=list)
    postponed: list[tuple[Transfer, WalletError]] = field(default_factory=list)

    def sort(
        self, transfers: Sequence[Transfer], answers: Sequence[Answer | WalletError]
    ) -> list[tuple[Transfer, Answer]]:
        """The answers that are answers; refusals go to `failures`, the rest to `postponed`."""
        answered: list[tuple[Transfer, Answer]] = []
        for transfer, answer in zip(transfers, answers, strict=True):
            if not isinstance(answer, WalletError):
                answered.append((transfer, answer))
            elif is_retried(answer):
                self.postponed.append((transfer, answer))
            else:
                self.failures.append((transfer, answer))
        return answered


class Saga:
    def __init__(self, store: Store, peers: Peers, vault: PersonalVault, changes: Changes) -> None:
        self._store = store
        self._peers = peers
        self._vault = vault
        self._changes = changes

    async def run(self, group: Sequence[Transfer], on_built: Callable[[], None] = lambda: None) -> float | None:
        """Carry a claimed group as far as it goes now. `on_built` is called once its nonces are reserved.

        Returns the seconds after which something of it is due again, or None. Raises WalletError when the database
        fails; the rows then stand as they were committed, under this worker's lease.
        """
        with self._span(group) as span:
            found = Round()
            # (1) What an earlier run began to fail is failed to its end.
            found.failures += [(t, failure_error(t.failure)) for t in group if t.failure is not None]
            accepted = [t for t in group if t.failure is None and t.state is State.ACCEPTED]
            # (2) Policy, before a nonce is held. (3) Nonce and unsigned transaction.
            await self._build(found, await self._check_policy(found, accepted))
            on_built()
            # (4) Decision, intent, signature: the signer's steps. (5) To the broadcaster, which keeps it from here on.
            await self._sign(found, [t for t in group if t.failure is None and t.state is State.BUILT])
            await self._submit(found, [t for t in group if t.failure is None and t.state is State.SIGNED])
            # (6) Refusals; (7) what is tried again.
            await self._fail(found)
            delay_s = await self._postpone(found)
            _describe(span, group, found)
        return delay_s

    @contextmanager
    def _span(self, group: Sequence[Transfer]) -> Iterator[Span]:
        """One transfer: inside its own trace. A group: a trace of its own, linked to each."""
        if len(group) == 1:
            context, links, name = stored_context(group[0].traceparent), [], SAGA
            values: dict[str, str | int] = {attributes.WALLET_LINK_ID: group[0].transfer_id}
        else:
            context, links, name = Context(), [stored_link(t.traceparent) for t in group], SAGA_GROUP
            values = {attributes.WALLET_BATCH_SIZE: len(group)}
        values[attributes.WALLET_CHAIN_ID] = group[0].chain_id
        span = tracer.start_span(name, context=context, links=links, attributes=values)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield span

    # (2)
    async def _check_policy(self, found: Round, transfers: Sequence[Transfer]) -> list[Transfer]:
        decided = found.sort(transfers, await self._decisions([self._policy_check(t) for t in transfers]))
        denied = [transfer for transfer, decision in decided if not decision.allowed]
        if denied:
            await self._record_denials(found, denied)
        return [transfer for transfer, decision in decided if decision.allowed]

    async def _record_denials(self, found: Round, denied: Sequence[Transfer]) -> None:
        """The refusal is a link of one denied intent, with the account's next nonce unreserved."""
        drafts = found.sort(denied, await _gather(denied, self._draft))
        checks = [self._policy_check(transfer, draft.unsigned_tx) for transfer, draft in drafts]
        transfers = [transfer for transfer, _ in drafts]
        for transfer, decision in found.sort(transfers, await self._decisions(checks)):
            if decision.allowed:
                # The policy changed in between: the step is restarted.
                changed = WalletError(Reason.LEASE_LOST, "the policy changed while it decided")
                found.postponed.append((transfer, changed))
            else:
                rule = "; ".join(decision.rules)
                message = Reason.POLICY_DENIED.meaning
                refusal = WalletError(Reason.POLICY_DENIED, message, rule=rule, policy_version=decision.policy_version)
                found.failures.append((transfer, refusal))

    async def _decisions(
        self, checks: Sequence[signer_pb2.PolicyCheck]
    ) -> list[signer_pb2.PolicyDecision | WalletError]:
        async def single(check: signer_pb2.PolicyCheck) -> Any:
            return (await batch([check]))[0]

        async def batch(some: Sequence[signer_pb2.PolicyCheck]) -> list[Any]:
            request = signer_pb2.CheckPolicyRequest(checks=some)
            return list((await self._peers.signer.CheckPolicy(request, timeout=_BATCH_TIMEOUT_S)).decisions)

        return await _ask(checks, single, batch)

    def _policy_check(self, transfer: Transfer, draft_unsigned_tx: bytes = b"") -> signer_pb2.PolicyCheck:
        return signer_pb2.PolicyCheck(
            transfer_id=transfer.transfer_id,
            terms=transfer.terms,
            draft_unsigned_tx=draft_unsigned_tx,
            key=transfer.key,
            requester=requester(self._client(transfer), transfer.created_at),
            traceparent=transfer.traceparent,
        )

    def _client(self, transfer: Transfer) -> Client:
        if transfer.personal is None:
            return _NO_CLIENT
        return self._vault.unseal(transfer.transfer_id, transfer.personal)

    async def _draft(self, transfer: Transfer) -> txbuilder_pb2.BuiltTransaction:
        reply: txbuilder_pb2.BuiltTransaction = await self._peers.txbuilder.DraftTransaction(
            _build_request(transfer), timeout=_SINGLE_TIMEOUT_S
        )
        return reply

    # (3)
    async def _build(self, found: Round, transfers: Sequence[Transfer]) -> None:
        async def single(transfer: Transfer) -> Any:
            return await self._peers.txbuilder.BuildTransaction(_build_request(transfer), timeout=_SINGLE_TIMEOUT_S)

        async def batch(some: Sequence[Transfer]) -> list[Any]:
            request = txbuilder_pb2.BuildTransactionsRequest(items=[_build_request(t) for t in some])
            reply = await self._peers.txbuilder.BuildTransactions(request, timeout=_BATCH_TIMEOUT_S)
            return [_result(result, "built") for result in reply.results]

        answers = await _ask(transfers, single, batch)
        checked = [_as_asked(transfer, answer) for transfer, answer in zip(transfers, answers, strict=True)]
        answered = found.sort(transfers, checked)
        rows = [(transfer, built.unsigned_tx, built.nonce) for transfer, built in answered]
        kept = await self._store.built(rows)
        for transfer, unsigned_tx, nonce in rows:
            if transfer.transfer_id in kept:
                transfer.state, transfer.unsigned_tx, transfer.nonce = State.BUILT, unsigned_tx, nonce
        self._changes.announce(kept)

    # (4)
    async def _sign(self, found: Round, transfers: Sequence[Transfer]) -> None:
        async def single(transfer: Transfer) -> Any:
            return await self._peers.signer.SignTransaction(self._sign_request(transfer), timeout=_SINGLE_TIMEOUT_S)

        async def batch(some: Sequence[Transfer]) -> list[Any]:
            request = signer_pb2.SignTransactionsRequest(items=[self._sign_request(t) for t in some])
            reply = await self._peers.signer.SignTransactions(request, timeout=_BATCH_TIMEOUT_S)
            return [_result(result, "signed") for result in reply.results]

        answered = found.sort(transfers, await _ask(transfers, single, batch))
        rows = [(transfer, signed.raw_tx, signed.tx_hash) for transfer, signed in answered]
        kept = await self._store.signed(rows)
        for transfer, raw_tx, tx_hash in rows:
            if transfer.transfer_id in kept:
                transfer.state, transfer.raw_tx, transfer.tx_hash = State.SIGNED, raw_tx, tx_hash
        self._changes.announce(kept)

    def _sign_request(self, transfer: Transfer) -> signer_pb2.SignTransactionRequest:
        return signer_pb2.SignTransactionRequest(
            transfer_id=transfer.transfer_id,
            unsigned_tx=transfer.unsigned_tx or b"",
            from_address=transfer.from_address,
            key=transfer.key,
            requester=requester(self._client(transfer), transfer.created_at),
            traceparent=transfer.traceparent,
        )

    # (5)
    async def _submit(self, found: Round, transfers: Sequence[Transfer]) -> None:
        async def single(transfer: Transfer) -> Any:
            request = _submit_request(transfer)
            return await self._peers.broadcaster.SubmitTransaction(request, timeout=_SINGLE_TIMEOUT_S)

        async def batch(some: Sequence[Transfer]) -> list[Any]:
            request = broadcaster_pb2.SubmitTransactionsRequest(items=[_submit_request(t) for t in some])
            reply = await self._peers.broadcaster.SubmitTransactions(request, timeout=_BATCH_TIMEOUT_S)
            return [_result(result, "submission") for result in reply.results]

        submitting = Round()
        answered = submitting.sort(transfers, await _ask(transfers, single, batch))
        # A signature exists: whatever the broadcaster says, it is submitted again and never FAILED. Else whoever
        # holds the old bytes could send them after a second payment.
        for transfer, error in submitting.failures:
            _log.error(
                "broadcaster refuses a signed transfer", extra={"link_id": transfer.transfer_id, "error": str(error)}
            )
        found.postponed += submitting.postponed + submitting.failures
        rows = [
            (transfer, submission.state >= broadcaster_pb2.SUBMISSION_STATE_SUBMITTED)
            for transfer, submission in answered
        ]
        kept = await self._store.handed_over(rows)
        for transfer, submitted in rows:
            if submitted and transfer.transfer_id in kept:
                transfer.state = State.SUBMITTED
        self._changes.announce(kept)

    # (6)
    async def _fail(self, found: Round) -> None:
        if not found.failures:
            return
        # (6.1) Why, in the row: after a crash the reason is still the first one.
        new = [(t, failure_document(error)) for t, error in found.failures if t.failure is None]
        kept = await self._store.failing(new)
        failing = [(t, e) for t, e in found.failures if t.failure is not None or t.transfer_id in kept]
        # (6.2) The signer promises never to sign; (6.3) only then the nonce is free.
        turns = asyncio.Semaphore(_FAILURES_AT_ONCE)
        answers = await asyncio.gather(*(self._undo(transfer, turns) for transfer, _ in failing))
        ended: list[Transfer] = []
        signed_after_all: list[Transfer] = []
        for (transfer, error), obstacle in zip(failing, answers, strict=True):
            if obstacle is None:
                ended.append(transfer)
                _trace_failure(transfer, error)
            elif obstacle.reason is Reason.ALREADY_SIGNED:
                signed_after_all.append(transfer)
            else:
                # Not voided: it may be signed, so it is not FAILED. Tried again.
                found.postponed.append((transfer, obstacle))
        # (6.4)
        failed = await self._store.failed(ended)
        for transfer in ended:
            if transfer.transfer_id in failed:
                transfer.state = State.FAILED
        await self._store.not_failing(signed_after_all)
        self._changes.announce(failed)

    async def _undo(self, transfer: Transfer, turns: asyncio.Semaphore) -> WalletError | None:
        """Void the link and give the nonce back; the error that is in the way, or None."""
        if transfer.state is State.ACCEPTED and transfer.fencing == 1:
            # The first run ever, and the builder refused: no nonce is held, nothing can be signed.
            return None
        async with turns:
            void = signer_pb2.VoidLinkRequest(transfer_id=transfer.transfer_id, cause="transfer failed")
            release = txbuilder_pb2.ReleaseNonceRequest(transfer_id=transfer.transfer_id)
            try:
                await self._peers.signer.VoidLink(void, timeout=_SINGLE_TIMEOUT_S)
            except WalletError as error:
                return error
            try:
                await self._peers.txbuilder.ReleaseNonce(release, timeout=_SINGLE_TIMEOUT_S)
            except WalletError as error:
                return error
        return None

    # (7)
    async def _postpone(self, found: Round) -> float | None:
        rows = [(transfer, retry_delay_s(transfer.attempts)) for transfer, _ in found.postponed]
        await self._store.postponed(rows)
        return min((delay_s for _, delay_s in rows), default=None)


def _describe(span: Span, group: Sequence[Transfer], found: Round) -> None:
    if len(group) == 1:
        span.set_attribute(attributes.WALLET_STATE, group[0].state.value)
    problems = found.failures + found.postponed
    if problems:
        reason = problems[0][1].reason.name
        span.set_attribute(attributes.ERROR_TYPE, reason)
        span.set_status(Status(StatusCode.ERROR, reason))


def _trace_failure(transfer: Transfer, error: WalletError) -> None:
    """The refusal stands in the transfer's own trace, also when a group was refused together."""
    values = {attributes.WALLET_LINK_ID: transfer.transfer_id, attributes.ERROR_TYPE: error.reason.name}
    span = tracer.start_span(FAILURE, context=stored_context(transfer.traceparent), attributes=values)
    span.set_status(Status(StatusCode.ERROR, error.reason.name))
    span.end()


async def _ask(
    items: Sequence[Any],
    single: Callable[[Any], Awaitable[Answer]],
    batch: Callable[[Sequence[Any]], Awaitable[list[Answer | WalletError]]],
) -> list[Answer | WalletError]:
    """One answer or error an item. A batch that is refused as a whole is asked item by item: no neighbour suffers."""
    if not items:
        return []
    if len(items) == 1:
        return await _gather(items, single)
    try:
        answers = await batch(items)
    except WalletError as error:
        if is_retried(error):
            return [error for _ in items]
        return await _gather(items, single)
    if len(answers) != len(items):
        raise WalletError(Reason.INTERNAL, "a batch was answered with another number of results")
    return answers


async def _gather(items: Sequence[Any], single: Callable[[Any], Awaitable[Answer]]) -> list[Answer | WalletError]:
    turns = asyncio.Semaphore(_FAILURES_AT_ONCE)

    async def one(item: Any) -> Answer | WalletError:
        async with turns:
            try:
                return await single(item)
            except WalletError as error:
                return error

    return list(await asyncio.gather(*(one(item) for item in items)))


def _as_asked(transfer: Transfer, answer: Any) -> Any:
    """The built transaction, or TERMS_MISMATCH in its place."""
    if isinstance(answer, WalletError):
        return answer
    try:
        check_as_asked(transfer, answer.unsigned_tx, answer.nonce)
    except WalletError as error:
        _log.error("txbuilder built something else", extra={"link_id": transfer.transfer_id, "error": str(error)})
        return error
    return answer


def _result(result: Any, name: str) -> Any:
    return getattr(result, name) if result.WhichOneof("result") == name else from_item_error(result.error)


def _build_request(transfer: Transfer) -> txbuilder_pb2.BuildTransactionRequest:
    return txbuilder_pb2.BuildTransactionRequest(
        transfer_id=transfer.transfer_id, terms=transfer.terms, fees=transfer.fee_options
    )


def _submit_request(transfer: Transfer) -> broadcaster_pb2.SubmitTransactionRequest:
    return broadcaster_pb2.SubmitTransactionRequest(
        transfer_id=transfer.transfer_id,
        chain_id=transfer.chain_id,
        from_address=transfer.from_address,
        nonce=transfer.nonce or 0,
        raw_tx=transfer.raw_tx or b"",
        traceparent=transfer.traceparent,
    )
