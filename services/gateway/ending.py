"""The end of a transfer with a signature: another transaction with its nonce is finalized, and says what it was."""

from __future__ import annotations

from collections.abc import Sequence

from services.core.errors import Reason, WalletError
from services.gateway.asking import Round
from services.gateway.changes import Changes
from services.gateway.failing import trace_failure
from services.gateway.progress import Progress
from services.gateway.superseding_rows import SupersedingRows
from services.gateway.transfer import State, Transfer, failure_document


class Ending:
    def __init__(self, progress: Progress, superseding: SupersedingRows, changes: Changes) -> None:
        self._progress = progress
        self._superseding = superseding
        self._changes = changes

    async def run(self, found: Round, transfers: Sequence[Transfer]) -> None:
        """SUPERSEDED by a link of ours that is final, else NONCE_SPENT; while that link is open, neither yet."""
        if not transfers:
            return
        links = [t.superseded_by for t in transfers if t.superseded_by is not None]
        states = await self._superseding.states(links) if links else {}
        ended: list[tuple[Transfer, WalletError]] = []
        for transfer in transfers:
            state = states.get(transfer.superseded_by or "")
            reason = Reason.SUPERSEDED if state is State.FINALIZED else Reason.NONCE_SPENT
            error = WalletError(reason, reason.meaning)
            if state is None or state in (State.FINALIZED, State.FAILED):
                ended.append((transfer, error))
            else:
                found.postponed.append((transfer, error))
        kept = await self._progress.ended([(transfer, failure_document(error)) for transfer, error in ended])
        for transfer, error in ended:
            if transfer.transfer_id in kept:
                transfer.state = State.FAILED
                trace_failure(transfer, error)
        self._changes.announce(kept)
