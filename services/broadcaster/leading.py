"""Who works on a chain: the replica that holds its lease. The others take submissions in and serve reads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from services.broadcaster import telemetry
from services.broadcaster.chain_clock import ChainClock
from services.broadcaster.evidence_log import PatientLog
from services.broadcaster.inclusion_store import InclusionStore
from services.broadcaster.leader_transactions import LeaderTransactions
from services.broadcaster.outbox import Outbox
from services.broadcaster.request_store import RequestStore
from services.broadcaster.requesting import Requester
from services.broadcaster.sending import Sender
from services.broadcaster.settings import BroadcasterSettings
from services.broadcaster.store import Store
from services.broadcaster.verdicts import Verdicts
from services.broadcaster.waiting import WaitingChecker
from services.broadcaster.waiting_store import WaitingStore
from services.broadcaster.watching import Watcher
from services.core.errors import Reason, WalletError
from services.runtime import attributes
from services.runtime.chain_nodes import ChainNodes
from services.runtime.database_clock import DatabaseClock
from services.runtime.db import Database

_log = logging.getLogger(__name__)

_PAUSE_S = 1.0  # after a failure, and between two looks whether a chain was mended


class ChainLeader:
    """Holds one chain's lease whenever it can, and sends and watches while it does."""

    def __init__(
        self,
        settings: BroadcasterSettings,
        database: Database,
        store: Store,
        log: PatientLog,
        chain: ChainNodes,
        changed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._database = database
        self._store = store
        self._log = log
        self._chain = chain
        self._clock = DatabaseClock(database)
        self._changed = changed
        self._sender: Sender | None = None

    def wake(self) -> None:
        """There is something new to send."""
        if self._sender is not None:
            self._sender.wake.set()

    async def run(self) -> None:
        """Lead, or stand by, until cancelled."""
        lease_s = self._settings.lease_s
        while True:
            epoch = None
            try:
                epoch = await self._store.take_lease(self._chain.chain_id, lease_s)
                if epoch is None:
                    await asyncio.sleep(lease_s / 10)
                    continue
                telemetry.takeovers.add(1, {attributes.WALLET_CHAIN_ID: self._chain.chain_id})
                _log.info("leading", extra={"chain_id": self._chain.chain_id, "epoch": epoch})
                await self._lead(epoch)
            except* WalletError as group:
                reasons = sorted({error.reason.name for error in _leaves(group)})
                if epoch is not None:
                    telemetry.lease_losses.add(1, {attributes.WALLET_CHAIN_ID: self._chain.chain_id})
                _log.warning("no longer leading", extra={"chain_id": self._chain.chain_id, "reasons": reasons})
            except* Exception:
                # A defect, on the record; work resumes from the rows.
                _log.exception("leading failed", extra={"chain_id": self._chain.chain_id})
            finally:
                self._sender = None
                if epoch is not None:
                    with suppress(WalletError):
                        await self._store.release_lease(self._chain.chain_id, epoch)
            await asyncio.sleep(_PAUSE_S)

    async def _lead(self, epoch: int) -> None:
        transactions = LeaderTransactions(self._database, self._chain.chain_id, epoch)
        outbox = Outbox(transactions)
        waiting_store = WaitingStore(transactions)
        behind_s = (await self._store.clocks_behind_s()).get(self._chain.chain_id, 0)
        chain_clock = ChainClock(
            self._chain,
            self._clock,
            behind_s,
            lambda behind_s: self._store.note_clock(self._chain.chain_id, epoch, behind_s),
        )
        watcher = Watcher(
            InclusionStore(transactions, outbox),
            waiting_store,
            outbox,
            self._log,
            self._chain,
            self._clock,
            chain_clock,
            interval_s=self._settings.watch_interval_s,
            safe_patience_s=self._settings.safe_patience_s,
            changed=self._changed,
            freed=self.wake,
            broken=lambda cause: self._break(epoch, cause),
        )
        requests = RequestStore(transactions, outbox)
        verdicts = Verdicts(self._chain.required)
        requester = Requester(
            requests,
            outbox,
            self._log,
            self._chain,
            verdicts,
            self._clock,
            resend_after_s=self._settings.resend_after_s,
            changed=self._changed,
            revisit=watcher.revisit,
        )
        sender = Sender(
            requests,
            requester,
            self._chain,
            max_in_flight=self._settings.max_in_flight,
            is_behind=lambda: watcher.is_behind,
            is_held=lambda: chain_clock.is_far_behind,
        )
        checker = WaitingChecker(
            waiting_store,
            self._chain,
            watcher,
            verdicts,
            self._clock,
            stall_after_s=self._settings.stall_after_s,
            interval_s=self._settings.nonce_check_s,
            changed=self._changed,
            freed=self.wake,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_lease(epoch))
            await self._until_whole()
            await requester.recover()
            await watcher.recover()
            self._sender = sender
            group.create_task(sender.run())
            group.create_task(watcher.run())
            group.create_task(checker.run())

    async def _break(self, epoch: int, cause: str) -> None:
        """Durable before anything else follows from it: no replica goes on until an operator mends the chain."""
        await self._store.break_chain(self._chain.chain_id, epoch, cause)
        telemetry.chains_broken.add(1, {attributes.WALLET_CHAIN_ID: self._chain.chain_id})
        _log.critical(
            "the chain is broken: nothing is sent or proven on it until an operator mends it",
            extra={"chain_id": self._chain.chain_id, "cause": cause},
        )

    async def _until_whole(self) -> None:
        """Hold the lease and do nothing while the chain is broken."""
        is_told = False
        while (cause := (await self._store.broken_chains()).get(self._chain.chain_id)) is not None:
            if not is_told:
                _log.critical("the chain is broken", extra={"chain_id": self._chain.chain_id, "cause": cause})
                is_told = True
            await asyncio.sleep(_PAUSE_S)

    async def _keep_lease(self, epoch: int) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_s / 3)
            try:
                await self._store.renew_lease(self._chain.chain_id, epoch, self._settings.lease_s)
            except WalletError as error:
                # Without the database nobody can take over; each commit checks the epoch.
                if error.reason is not Reason.DATABASE_UNAVAILABLE:
                    raise


def _leaves(group: BaseExceptionGroup[WalletError]) -> list[WalletError]:
    leaves: list[WalletError] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves
