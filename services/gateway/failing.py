"""The end of a transfer without a signature: its reason in the row first, its link voided before its nonce is free."""

from __future__ import annotations

import asyncio
from datetime import datetime

from opentelemetry.trace import Status, StatusCode

from protos.wallet.v1 import signer_pb2, txbuilder_pb2
from services.core.errors import Reason, WalletError
from services.gateway.asking import CALLS_AT_ONCE, SINGLE_TIMEOUT_S, Round, retry_delay_s
from services.gateway.changes import Changes
from services.gateway.metrics import count_transfers
from services.gateway.peers import Peers
from services.gateway.progress import Progress
from services.gateway.superseding_rows import SupersedingRows
from services.gateway.telemetry import FAILURE, tracer
from services.gateway.transfer import State, Transfer, failure_document
from services.runtime import attributes
from services.runtime.database_clock import DatabaseClock
from services.runtime.telemetry import stored_context


class Failing:
    def __init__(
        self,
        progress: Progress,
        superseding: SupersedingRows,
        peers: Peers,
        changes: Changes,
        clock: DatabaseClock,
    ) -> None:
        self._progress = progress
        self._superseding = superseding
        self._peers = peers
        self._changes = changes
        self._clock = clock

    async def run(self, found: Round) -> float | None:
        """End what `found.failures` names. The seconds after which a transfer that is signed after all is due."""
        if not found.failures:
            return None
        # (1) Why, in the row: after a crash the reason is still the first one.
        now = await self._clock.now()
        new = [(t, failure_document(by_meaning(t, error, now))) for t, error in found.failures if t.failure is None]
        kept = await self._progress.failing(new)
        failing = [(t, e) for t, e in found.failures if t.failure is not None or t.transfer_id in kept]
        # (2) The signer promises never to sign; (3) only then the nonce is free.
        turns = asyncio.Semaphore(CALLS_AT_ONCE)
        answers = await asyncio.gather(*(self._undo(transfer, turns) for transfer, _ in failing))
        ended: list[Transfer] = []
        signed_after_all: list[Transfer] = []
        for (transfer, error), obstacle in zip(failing, answers, strict=True):
            if obstacle is None:
                ended.append(transfer)
                trace_failure(transfer, error)
            elif obstacle.reason is Reason.ALREADY_SIGNED:
                signed_after_all.append(transfer)
            else:
                # Not voided: it may be signed, so it is not FAILED. Tried again.
                found.postponed.append((transfer, obstacle))
        # (4) The end; or, where a signature exists, on with it, and a superseding link if it was to be cancelled.
        failed = await self._progress.failed(ended)
        for transfer in ended:
            if transfer.transfer_id in failed:
                transfer.state = State.FAILED
        count_transfers(State.FAILED for _ in failed)
        self._changes.announce(failed)
        return await self._go_on(signed_after_all)

    async def _undo(self, transfer: Transfer, turns: asyncio.Semaphore) -> WalletError | None:
        """Void the link and give the nonce back; the error that is in the way, or None."""
        if transfer.state is State.ACCEPTED and transfer.fencing == 1:
            # The first run ever, and the builder refused: no nonce is held, nothing can be signed.
            return None
        async with turns:
            void = signer_pb2.VoidLinkRequest(transfer_id=transfer.transfer_id, cause="transfer failed")
            release = txbuilder_pb2.ReleaseNonceRequest(transfer_id=transfer.transfer_id)
            try:
                await self._peers.signer.VoidLink(void, timeout=SINGLE_TIMEOUT_S)
                await self._peers.txbuilder.ReleaseNonce(release, timeout=SINGLE_TIMEOUT_S)
            except WalletError as error:
                return error
        return None

    async def _go_on(self, transfers: list[Transfer]) -> float | None:
        cancelled = [t for t in transfers if t.cancelled_by is not None and t.nonce is not None]
        for transfer in cancelled:
            self._changes.announce(await self._superseding.supersede(transfer))
        rows = [(t, retry_delay_s(t.attempts)) for t in transfers if t not in cancelled]
        await self._progress.not_failing(rows)
        return min([delay_s for _, delay_s in rows] + [0.0] * len(cancelled), default=None)


def by_meaning(transfer: Transfer, error: WalletError, now: datetime) -> WalletError:
    """Approvals that the signer misses were given too long ago, where the time for them is over."""
    expires_at = transfer.approval_expires_at
    if error.reason is Reason.APPROVAL_REQUIRED and expires_at is not None and expires_at <= now:
        return WalletError(Reason.APPROVAL_EXPIRED, Reason.APPROVAL_EXPIRED.meaning)
    return error


def trace_failure(transfer: Transfer, error: WalletError) -> None:
    """The refusal stands in the transfer's own trace, also when a group was refused together."""
    values = {attributes.WALLET_LINK_ID: transfer.transfer_id, attributes.ERROR_TYPE: error.reason.name}
    span = tracer.start_span(FAILURE, context=stored_context(transfer.traceparent), attributes=values)
    span.set_status(Status(StatusCode.ERROR, error.reason.name))
    span.end()
