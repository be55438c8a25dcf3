"""Cancelling a transfer: before a signature it is voided; after, a superseding link is set against it.

Whichever of the two the chain mines, the other is never mined.
"""

from __future__ import annotations

import asyncio
import contextlib

from services.gateway.changes import Changes, Watch
from services.gateway.dispatcher import Dispatcher
from services.gateway.personal import Client, PersonalVault
from services.gateway.store import Store
from services.gateway.superseding_rows import SupersedingRows
from services.gateway.transfer import UNSIGNED_STATES, Transfer

# The signer is asked whether there is a signature; this long the answer is waited for.
_WAIT_S = 5.0


class Cancellation:
    def __init__(
        self,
        store: Store,
        rows: SupersedingRows,
        vault: PersonalVault,
        changes: Changes,
        dispatcher: Dispatcher,
    ) -> None:
        self._store = store
        self._rows = rows
        self._vault = vault
        self._changes = changes
        self._dispatcher = dispatcher

    async def cancel(self, transfer_id: str, client: Client) -> Transfer:
        """The transfer, failed or about to be, or the superseding link; the same at every call, until that link has
        failed unsigned: then another one.

        Raises:
            WalletError: NOT_FOUND, INVALID_REQUEST, TRANSFER_CLOSED, as `SupersedingRows.cancel` says.
        """
        with self._changes.watch(transfer_id) as watch:
            transfer = await self._rows.cancel(transfer_id, lambda link_id: self._vault.seal(link_id, client))
            if transfer.supersedes is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_WAIT_S):
                        transfer = await self._decided(transfer, watch)
            self._dispatcher.wake({transfer.account_key})
        return transfer

    async def _decided(self, transfer: Transfer, watch: Watch) -> Transfer:
        """Once it has failed, or has a superseding link."""
        await self._dispatcher.hurry(transfer.transfer_id)
        current = await self._current(transfer.transfer_id)
        while _is_undecided(current) and not self._changes.stopping:
            await watch.wait()
            current = await self._current(transfer.transfer_id)
        return current

    async def _current(self, transfer_id: str) -> Transfer:
        (transfer,) = await self._store.transfers([transfer_id])
        if transfer.superseded_by is None:
            return transfer
        (link,) = await self._store.transfers([transfer.superseded_by])
        return link


def _is_undecided(transfer: Transfer) -> bool:
    return transfer.state in UNSIGNED_STATES and transfer.failure is not None
