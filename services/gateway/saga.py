"""The saga: a group of one account's transfers, from their rows to the broadcaster, in numbered steps.

Every step asks a peer that is idempotent by transfer id, then commits what it answered. A crash between the two repeats
the question and gets the same answer: the same unsigned bytes, the same signature, the same submission. So the row
names the last finished step, and any worker goes on from it. One transfer is asked by the single-item call, more by
the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode

from protos.wallet.v1 import broadcaster_pb2, txbuilder_pb2
from services.core.errors import Reason, WalletError
from services.gateway.asking import (
    BATCH_TIMEOUT_S,
    SINGLE_TIMEOUT_S,
    Round,
    ask,
    ask_each,
    item_result,
    retry_delay_s,
)
from services.gateway.chain_health import ChainHealth
from services.gateway.changes import Changes
from services.gateway.deciding import Deciding
from services.gateway.ending import Ending
from services.gateway.failing import Failing
from services.gateway.peers import Peers
from services.gateway.progress import Progress
from services.gateway.replacing import Replacing
from services.gateway.signatures import Signatures, Unsigned
from services.gateway.submissions import Signed, Submissions
from services.gateway.telemetry import SAGA, SAGA_GROUP, tracer
from services.gateway.transfer import State, Transfer, failure_error
from services.gateway.unsigned import checked_as_asked
from services.runtime import attributes
from services.runtime.telemetry import stored_context, stored_link

# A superseding link whose fees would be above the cap waits: for the market, for the cap, or for the chain to decide.
# What is broken is for an operator to mend.
_PAUSES_S = {Reason.FEE_CAP_REACHED: 30.0, Reason.CHAIN_BROKEN: 5.0}


class Saga:
    def __init__(
        self,
        progress: Progress,
        peers: Peers,
        chains: ChainHealth,
        changes: Changes,
        *,
        deciding: Deciding,
        signatures: Signatures,
        submissions: Submissions,
        replacing: Replacing,
        ending: Ending,
        failing: Failing,
    ) -> None:
        self._progress = progress
        self._peers = peers
        self._chains = chains
        self._changes = changes
        self._deciding = deciding
        self._signatures = signatures
        self._submissions = submissions
        self._replacing = replacing
        self._ending = ending
        self._failing = failing

    async def run(self, group: Sequence[Transfer], on_built: Callable[[], None] = lambda: None) -> float | None:
        """Carry a claimed group as far as it goes now. `on_built` is called once its nonces are reserved.

        Returns the seconds after which something of it is due again, or None. Raises WalletError when the database
        fails; the rows then stand as they were committed, under this worker's lease.
        """
        with self._span(group) as span:
            found = Round()
            # (1) What an earlier run began to fail is failed to its end, and so is what another transaction with its
            # nonce has decided. On a chain that is broken everything else waits.
            found.failures += [(t, failure_error(t.failure)) for t in group if t.failure is not None]
            spent = [t for t in group if t.failure is None and t.nonce_spent]
            await self._ending.run(found, spent)
            active = self._unbroken(found, [t for t in group if t.failure is None and not t.nonce_spent])
            # (2) Policy and approvals, before a nonce is held. (3) Nonce and unsigned transaction.
            accepted = [t for t in active if t.state in (State.ACCEPTED, State.AWAITING_APPROVAL)]
            await self._build(found, await self._deciding.run(found, accepted) if accepted else [])
            on_built()
            # (4) Decision, intent, signature: the signer's steps. (5) To the broadcaster, which keeps it from here on.
            await self._sign(found, self._unbroken(found, [t for t in active if t.state is State.BUILT]))
            await self._submit(found, [t for t in active if t.state is State.SIGNED])
            # (6) Another version of what is not mined.
            await self._replacing.run(found, [t for t in active if t.replacement_wanted is not None and _is_sent(t)])
            # (7) Refusals; (8) what is tried again.
            failing_s = await self._failing.run(found)
            delay_s = await self._postpone(found)
            _describe(span, group, found)
        return min((one for one in (failing_s, delay_s) if one is not None), default=None)

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

    def _unbroken(self, found: Round, transfers: list[Transfer]) -> list[Transfer]:
        """All of them, unless their chain is broken: then none."""
        broken = self._chains.broken(transfers[0].chain_id) if transfers else None
        if broken is None:
            return transfers
        found.postponed += [(transfer, broken) for transfer in transfers]
        return []

    # (3)
    async def _build(self, found: Round, transfers: Sequence[Transfer]) -> None:
        async def single(transfer: Transfer) -> Any:
            built = await self._peers.txbuilder.BuildTransaction(_build_request(transfer), timeout=SINGLE_TIMEOUT_S)
            return checked_as_asked(transfer, built, built.nonce)

        async def batch(some: Sequence[Transfer]) -> list[Any]:
            request = txbuilder_pb2.BuildTransactionsRequest(items=[_build_request(t) for t in some])
            reply = await self._peers.txbuilder.BuildTransactions(request, timeout=BATCH_TIMEOUT_S)
            built = [item_result(result, "built") for result in reply.results]
            return [
                one if isinstance(one, WalletError) else checked_as_asked(transfer, one, one.nonce)
                for transfer, one in zip(some, built, strict=True)
            ]

        own = [t for t in transfers if t.supersedes is None]
        answered = found.sort(own, await ask(own, single, batch))
        if len(own) < len(transfers):
            answered += await self._supersede(found, [t for t in transfers if t.supersedes is not None])
        rows = [(transfer, built.unsigned_tx, built.nonce) for transfer, built in answered]
        kept = await self._progress.built(rows)
        for transfer, unsigned_tx, nonce in rows:
            if transfer.transfer_id in kept:
                transfer.state, transfer.unsigned_tx, transfer.nonce = State.BUILT, unsigned_tx, nonce
        self._changes.announce(kept)

    async def _supersede(self, found: Round, transfers: Sequence[Transfer]) -> list[tuple[Transfer, Any]]:
        async def single(transfer: Transfer) -> Any:
            request = txbuilder_pb2.BuildSupersedingRequest(
                transfer_id=transfer.transfer_id,
                chain_id=transfer.chain_id,
                from_address=transfer.from_address,
                nonce=transfer.nonce or 0,
                supersedes=transfer.supersedes or "",
            )
            built = await self._peers.txbuilder.BuildSuperseding(request, timeout=SINGLE_TIMEOUT_S)
            return checked_as_asked(transfer, built, transfer.nonce or 0)

        refused = Round()
        answered = refused.sort(transfers, await ask_each(transfers, single))
        found.postponed += refused.postponed
        for transfer, error in refused.failures:
            # Nothing but the cap keeps it from being built later.
            (found.postponed if error.reason is Reason.FEE_CAP_REACHED else found.failures).append((transfer, error))
        return answered

    # (4)
    async def _sign(self, found: Round, transfers: Sequence[Transfer]) -> None:
        answers = await self._signatures.ask([Unsigned(t, t.unsigned_tx or b"") for t in transfers])
        rows = [(transfer, signed.raw_tx, signed.tx_hash) for transfer, signed in found.sort(transfers, answers)]
        kept = await self._progress.signed(rows)
        for transfer, raw_tx, tx_hash in rows:
            if transfer.transfer_id in kept:
                transfer.state, transfer.raw_tx, transfer.tx_hash = State.SIGNED, raw_tx, tx_hash
        self._changes.announce(kept)

    # (5)
    async def _submit(self, found: Round, transfers: Sequence[Transfer]) -> None:
        answered = await self._submissions.ask(found, [Signed(t, t.raw_tx or b"") for t in transfers])
        rows = [
            (transfer, submission.state >= broadcaster_pb2.SUBMISSION_STATE_SUBMITTED)
            for transfer, submission in answered
        ]
        kept = await self._progress.handed_over(rows)
        for transfer, submitted in rows:
            if submitted and transfer.transfer_id in kept:
                transfer.state = State.SUBMITTED
        self._changes.announce(kept)

    # (8)
    async def _postpone(self, found: Round) -> float | None:
        rows = [(transfer, _delay_s(transfer, error)) for transfer, error in found.postponed]
        await self._progress.postponed(rows)
        return min((delay_s for _, delay_s in rows), default=None)


def _is_sent(transfer: Transfer) -> bool:
    return transfer.state in (State.SUBMITTED, State.INCLUDED, State.SAFE)


def _delay_s(transfer: Transfer, error: WalletError) -> float:
    return _PAUSES_S.get(error.reason, retry_delay_s(transfer.attempts))


def _describe(span: Span, group: Sequence[Transfer], found: Round) -> None:
    if len(group) == 1:
        span.set_attribute(attributes.WALLET_STATE, group[0].state.value)
    problems = found.failures + found.postponed
    if problems:
        reason = problems[0][1].reason.name
        span.set_attribute(attributes.ERROR_TYPE, reason)
        span.set_status(Status(StatusCode.ERROR, reason))


def _build_request(transfer: Transfer) -> txbuilder_pb2.BuildTransactionRequest:
    return txbuilder_pb2.BuildTransactionRequest(
        transfer_id=transfer.transfer_id, terms=transfer.terms, fees=transfer.fee_options
    )
