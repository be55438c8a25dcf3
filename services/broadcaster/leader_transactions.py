"""Transactions of a chain's leader.

Only the leader writes a chain's blocks, outbox, states and events. Each transaction first checks the leader's epoch
under a row lock that a takeover waits for, so a leader that lost its lease writes nothing more; and within the process
one transaction runs at a time, so the outbox's numbers are in the order of commits. A leader that stops in the middle
of a transaction, paused or cut off, is ended by the database, so that it holds up no takeover.

Events of several chains share one sequence. Numbers are drawn under an advisory lock that ends with the transaction,
after its rows are visible: who has read a cursor has been shown every smaller one. A gap is a rollback, never a row
that appears later.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.core.errors import Reason, WalletError
from services.runtime.db import Database

_EVENTS_LOCK = zlib.crc32(b"broadcaster.events")

# Of a submission's row to its events.
SHOWN = (
    "transfer_id, tx_hash, state, block_number, block_hash, receipt_status, fee_paid_wei, stall, "
    "coalesce(newest_tx_hash, tx_hash)"
)
EVENT = "transfer_id, tx_hash, state, block_number, block_hash, receipt_status, fee_paid_wei, stall, newest_tx_hash, at"


class LeaderTransactions:
    def __init__(self, database: Database, chain_id: str, epoch: int) -> None:
        self._database = database
        self.chain_id = chain_id
        self._epoch = epoch
        self._one_at_a_time = asyncio.Lock()
        # Outbox rows that the log has; the next transaction deletes them.
        self.appended: set[int] = set()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """Raises WalletError LEASE_LOST when another has taken over."""
        async with self._one_at_a_time:
            appended = list(self.appended)
            async with self._database.begin() as connection:
                held = await connection.execute(
                    text("""
                        SELECT set_config('idle_in_transaction_session_timeout', '5s', true)
                        FROM broadcaster.chains WHERE chain_id = :chain_id AND epoch = :epoch FOR SHARE
                    """),
                    {"chain_id": self.chain_id, "epoch": self._epoch},
                )
                if held.one_or_none() is None:
                    raise WalletError(Reason.LEASE_LOST, Reason.LEASE_LOST.meaning)
                if appended:
                    await delete_rows(connection, appended)
                yield connection
            self.appended.difference_update(appended)

    def statement(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """For what only reads."""
        return self._database.statement()


async def delete_rows(connection: AsyncConnection, seqs: Iterable[int]) -> None:
    """Delete rows of the outbox by their numbers."""
    if numbers := list(seqs):
        await connection.execute(
            text("DELETE FROM broadcaster.outbox WHERE seq = ANY (CAST(:seqs AS bigint[]))"), {"seqs": numbers}
        )


async def lock_events(connection: AsyncConnection) -> None:
    """Before events are inserted."""
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _EVENTS_LOCK})
