"""What every replica does with the database: take submissions in, tell their state, read events, hold the lease."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from services.broadcaster.submission import (
    CLOSED,
    NewSubmission,
    StallCause,
    State,
    Submission,
    is_replacement,
    taken,
)
from services.core.errors import Reason, WalletError
from services.runtime.db import Database

_SUBMISSION = (
    "transfer_id, tx_hash, state, block_number, block_hash, receipt_status, stall, "
    "coalesce(newest_tx_hash, tx_hash) AS newest_tx_hash"
)

# The insert may wait for another that holds the same transfer; afterwards both see the first one's row.
_INSERT = text("""
INSERT INTO broadcaster.submissions (transfer_id, tx_hash, chain_id, account, nonce, raw_tx, traceparent)
SELECT * FROM unnest(CAST(:transfer_ids AS text[]), CAST(:tx_hashes AS bytea[]), CAST(:chain_ids AS text[]),
                     CAST(:accounts AS bytea[]), CAST(:nonces AS bigint[]), CAST(:raw_txs AS bytea[]),
                     CAST(:traceparents AS text[])) AS n (transfer_id, tx_hash, chain_id)
WHERE NOT EXISTS (SELECT 1 FROM broadcaster.versions v WHERE v.tx_hash = n.tx_hash)
    AND NOT EXISTS (SELECT 1 FROM broadcaster.chains c WHERE c.chain_id = n.chain_id AND c.broken IS NOT NULL)
ON CONFLICT DO NOTHING
""")

_MOST_SECONDS = 2**31 - 1
_BROKEN = "SELECT broken FROM broadcaster.chains WHERE chain_id = :chain_id"


@dataclass(frozen=True, slots=True)
class Event:
    """A state change, and the submission as it was then. `cursor` grows in the order of commits."""

    cursor: int
    submission: Submission
    at: datetime
    fee_paid_wei: int | None


class Store:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, items: Sequence[NewSubmission]) -> list[Submission | WalletError]:
        """Store what is new and answer where each stands. All first transactions are one commit; each replacement is
        one of its own.

        In the place of an item stands its refusal: ALREADY_EXISTS when its transfer or transaction is stored with
        another partner, CHAIN_BROKEN.
        """
        async with self._database.begin() as connection:
            await connection.execute(
                _INSERT,
                {
                    "transfer_ids": [item.transfer_id for item in items],
                    "tx_hashes": [item.tx_hash for item in items],
                    "chain_ids": [item.chain_id for item in items],
                    "accounts": [item.account for item in items],
                    "nonces": [item.nonce for item in items],
                    "raw_txs": [item.raw_tx for item in items],
                    "traceparents": [item.traceparent for item in items],
                },
            )
            rows = await connection.execute(
                text(f"""
                    SELECT {_SUBMISSION} FROM broadcaster.submissions
                    WHERE transfer_id = ANY (CAST(:transfer_ids AS text[]))
                """),  # noqa: S608 - the columns are a constant
                {"transfer_ids": [item.transfer_id for item in items]},
            )
            stored = {row.transfer_id: _submission(row) for row in rows}
        return [await self._answer(item, stored.get(item.transfer_id)) for item in items]

    async def _answer(self, item: NewSubmission, stored: Submission | None) -> Submission | WalletError:
        if stored is not None and item.tx_hash in (stored.tx_hash, stored.newest_tx_hash):
            return stored
        try:
            async with self._database.begin() as connection:
                if stored is not None:
                    return await self._replace(connection, item)
                if await self._is_broken(connection, item.chain_id):
                    return WalletError(Reason.CHAIN_BROKEN, Reason.CHAIN_BROKEN.meaning, chain_id=item.chain_id)
        except WalletError as error:
            if error.reason not in (Reason.ALREADY_EXISTS, Reason.CHAIN_BROKEN):
                raise
            return error
        # The transfer has no row, so the insert stepped back before another transfer's transaction.
        return taken("raw_tx")

    async def _replace(self, connection: AsyncConnection, item: NewSubmission) -> Submission:
        """Make the item's the newest transaction of its transfer. Only this one row is locked: leaders lock many."""
        found = await connection.execute(
            text("""
                SELECT id, chain_id, account, raw_tx, state, block_number FROM broadcaster.submissions
                WHERE transfer_id = :transfer_id FOR UPDATE
            """),
            {"transfer_id": item.transfer_id},
        )
        row = found.one()
        holders = await connection.execute(
            text("""
                SELECT id FROM broadcaster.submissions WHERE tx_hash = :tx_hash
                UNION ALL SELECT submission_id FROM broadcaster.versions WHERE tx_hash = :tx_hash
            """),
            {"tx_hash": item.tx_hash},
        )
        holder: int | None = holders.scalar_one_or_none()
        if holder is not None and holder != row.id:
            raise taken("raw_tx")
        same = (row.chain_id, row.account) == (item.chain_id, item.account)
        if not same or not is_replacement(item.raw_tx, row.raw_tx):
            raise taken("transfer_id")
        # One that is stored already stays where it is, and nothing replaces what is closed.
        if holder is None and State(row.state) not in CLOSED:
            if await self._is_broken(connection, item.chain_id):
                raise WalletError(Reason.CHAIN_BROKEN, Reason.CHAIN_BROKEN.meaning, chain_id=item.chain_id)
            await self._add_version(connection, row, item)
        return await self._get(connection, item.transfer_id)

    async def _add_version(self, connection: AsyncConnection, row: Row[Any], item: NewSubmission) -> None:
        new = {"id": row.id, "tx_hash": item.tx_hash, "raw_tx": item.raw_tx}
        if row.block_number is not None:
            # The one that is mined counts; the new one is sent if a reorg drops it.
            await connection.execute(
                text("INSERT INTO broadcaster.versions VALUES (:tx_hash, :id, :raw_tx, false)"), new
            )
            await connection.execute(
                text("UPDATE broadcaster.submissions SET newest_tx_hash = :tx_hash, stall = NULL WHERE id = :id"), new
            )
            return
        await connection.execute(
            text("""
                INSERT INTO broadcaster.versions (tx_hash, submission_id, raw_tx, answered)
                SELECT tx_hash, id, raw_tx, answered FROM broadcaster.submissions WHERE id = :id
            """),
            new,
        )
        await connection.execute(
            text("""
                UPDATE broadcaster.submissions
                SET tx_hash = :tx_hash, raw_tx = :raw_tx, answered = false, stall = NULL, submitted_at = NULL,
                    earlier_attempts = attempts, answered_nodes = '{}', silent_nodes = '{}', next_send_at = '-infinity'
                WHERE id = :id
            """),
            new,
        )

    async def _is_broken(self, connection: AsyncConnection, chain_id: str) -> bool:
        return (await connection.execute(text(_BROKEN), {"chain_id": chain_id})).scalar_one_or_none() is not None

    async def get(self, transfer_id: str) -> Submission:
        """Raises WalletError NOT_FOUND."""
        async with self._database.statement() as connection:
            return await self._get(connection, transfer_id)

    async def _get(self, connection: AsyncConnection, transfer_id: str) -> Submission:
        rows = await connection.execute(
            text(f"SELECT {_SUBMISSION} FROM broadcaster.submissions WHERE transfer_id = :id"),  # noqa: S608
            {"id": transfer_id},
        )
        row = rows.one_or_none()
        if row is None:
            raise WalletError(Reason.NOT_FOUND, Reason.NOT_FOUND.meaning, field="transfer_id")
        return _submission(row)

    async def events_after(self, cursor: int, limit: int) -> list[Event]:
        """Events in the order of their cursors. None appears later below one that was read (`leader_transactions`)."""
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text(f"""
                    SELECT cursor, at, fee_paid_wei, {_SUBMISSION} FROM broadcaster.events
                    WHERE cursor > :cursor ORDER BY cursor LIMIT :limit
                """),  # noqa: S608
                {"cursor": cursor, "limit": limit},
            )
            return [
                Event(row.cursor, _submission(row), row.at, None if row.fee_paid_wei is None else int(row.fee_paid_wei))
                for row in rows
            ]

    # Chains that contradict themselves

    async def broken_chains(self) -> dict[str, str]:
        """Why, by chain."""
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text("SELECT chain_id, broken FROM broadcaster.chains WHERE broken IS NOT NULL ORDER BY chain_id")
            )
            return {row.chain_id: row.broken for row in rows}

    async def break_chain(self, chain_id: str, epoch: int, cause: str) -> None:
        """From now on nothing is taken, sent or proven on it. Raises WalletError LEASE_LOST."""
        async with self._database.statement() as connection:
            marked = await connection.execute(
                text("UPDATE broadcaster.chains SET broken = :cause WHERE chain_id = :chain_id AND epoch = :epoch"),
                {"chain_id": chain_id, "epoch": epoch, "cause": cause},
            )
            if marked.rowcount != 1:
                raise WalletError(Reason.LEASE_LOST, Reason.LEASE_LOST.meaning)

    # Clocks of chains

    async def clocks_behind_s(self) -> dict[str, int]:
        """By chain, as its leader told last; negative: ahead."""
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text("SELECT chain_id, clock_behind_s FROM broadcaster.chains ORDER BY chain_id")
            )
            return {row.chain_id: row.clock_behind_s for row in rows}

    async def note_clock(self, chain_id: str, epoch: int, behind_s: int) -> None:
        """Raises WalletError LEASE_LOST."""
        async with self._database.statement() as connection:
            noted = await connection.execute(
                text("""
                    UPDATE broadcaster.chains SET clock_behind_s = :behind_s
                    WHERE chain_id = :chain_id AND epoch = :epoch
                """),
                {"chain_id": chain_id, "epoch": epoch, "behind_s": max(-_MOST_SECONDS, min(behind_s, _MOST_SECONDS))},
            )
            if noted.rowcount != 1:
                raise WalletError(Reason.LEASE_LOST, Reason.LEASE_LOST.meaning)

    async def mend(self, chain_id: str) -> bool:
        """An operator has looked, and the nodes' chain is to be followed as it is; False when it was not broken.

        Nothing of it is final any more, as far as it is watched. Links that are finalized stay so.
        """
        async with self._database.statement() as connection:
            mended = await connection.execute(
                text("""
                    UPDATE broadcaster.chains SET broken = NULL, finalized_number = NULL
                    WHERE chain_id = :chain_id AND broken IS NOT NULL
                """),
                {"chain_id": chain_id},
            )
            return mended.rowcount == 1

    # The lease

    async def take_lease(self, chain_id: str, lease_s: float) -> int | None:
        """The epoch under which this process now leads the chain; None while another holds the lease."""
        async with self._database.statement() as connection:
            taken_over = await connection.execute(
                text("""
                    INSERT INTO broadcaster.chains AS c (chain_id, epoch, lease_until)
                    SELECT :chain_id, 1, clock_timestamp() + make_interval(secs => :lease_s)
                    -- A standby that looks and looks again locks no row.
                    WHERE NOT EXISTS (SELECT 1 FROM broadcaster.chains h
                                      WHERE h.chain_id = :chain_id AND h.lease_until >= clock_timestamp())
                    ON CONFLICT (chain_id) DO UPDATE
                    SET epoch = c.epoch + 1, lease_until = excluded.lease_until
                    WHERE c.lease_until < clock_timestamp()
                    RETURNING epoch
                """),
                {"chain_id": chain_id, "lease_s": lease_s},
            )
            epoch: int | None = taken_over.scalar_one_or_none()
            return epoch

    async def renew_lease(self, chain_id: str, epoch: int, lease_s: float) -> None:
        """Raises WalletError LEASE_LOST when another has taken over."""
        async with self._database.statement() as connection:
            renewed = await connection.execute(
                text("""
                    UPDATE broadcaster.chains
                    SET lease_until = clock_timestamp() + make_interval(secs => :lease_s)
                    WHERE chain_id = :chain_id AND epoch = :epoch
                """),
                {"chain_id": chain_id, "epoch": epoch, "lease_s": lease_s},
            )
            if renewed.rowcount != 1:
                raise WalletError(Reason.LEASE_LOST, Reason.LEASE_LOST.meaning)

    async def release_lease(self, chain_id: str, epoch: int) -> None:
        """End the lease early, so that a standby need not wait for it."""
        async with self._database.statement() as connection:
            await connection.execute(
                text("""
                    UPDATE broadcaster.chains SET lease_until = '-infinity'
                    WHERE chain_id = :chain_id AND epoch = :epoch
                """),
                {"chain_id": chain_id, "epoch": epoch},
            )


def _submission(row: Row[Any]) -> Submission:
    return Submission(
        row.transfer_id,
        row.tx_hash,
        State(row.state),
        row.block_number,
        row.block_hash,
        row.receipt_status,
        StallCause(row.stall) if row.stall else None,
        row.newest_tx_hash,
    )
