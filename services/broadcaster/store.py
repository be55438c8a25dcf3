"""What every replica does with the database: take submissions in, tell their state, read events, hold the lease."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Row

from services.broadcaster.submission import NewSubmission, State, Submission, taken
from services.core.errors import Reason, WalletError
from services.runtime.db import Database

_SUBMISSION = "transfer_id, tx_hash, state, block_number, block_hash, receipt_status"

# The insert may wait for another that holds the same transfer; afterwards both see the first one's row.
_INSERT = text("""
INSERT INTO broadcaster.submissions (transfer_id, tx_hash, chain_id, account, nonce, raw_tx, traceparent)
SELECT * FROM unnest(CAST(:transfer_ids AS text[]), CAST(:tx_hashes AS bytea[]), CAST(:chain_ids AS text[]),
                     CAST(:accounts AS bytea[]), CAST(:nonces AS bigint[]), CAST(:raw_txs AS bytea[]),
                     CAST(:traceparents AS text[]))
ON CONFLICT DO NOTHING
""")


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
        """Store what is new and answer where each stands, in one commit.

        ALREADY_EXISTS takes the place of an item whose transfer or transaction is stored with another partner.
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
        return [_answer(item, stored.get(item.transfer_id)) for item in items]

    async def get(self, transfer_id: str) -> Submission:
        """Raises WalletError NOT_FOUND."""
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text(f"SELECT {_SUBMISSION} FROM broadcaster.submissions WHERE transfer_id = :id"),  # noqa: S608
                {"id": transfer_id},
            )
            row = rows.one_or_none()
        if row is None:
            raise WalletError(Reason.NOT_FOUND, Reason.NOT_FOUND.meaning, field="transfer_id")
        return _submission(row)

    async def events_after(self, cursor: int, limit: int) -> list[Event]:
        """Events in the order of their cursors. None appears later below one that was read: see `ChainStore`."""
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

    async def take_lease(self, chain_id: str, lease_s: float) -> int | None:
        """The epoch under which this process now leads the chain; None while another holds the lease."""
        async with self._database.statement() as connection:
            taken_over = await connection.execute(
                text("""
                    INSERT INTO broadcaster.chains AS c (chain_id, epoch, lease_until)
                    VALUES (:chain_id, 1, clock_timestamp() + make_interval(secs => :lease_s))
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
        row.transfer_id, row.tx_hash, State(row.state), row.block_number, row.block_hash, row.receipt_status
    )


def _answer(item: NewSubmission, stored: Submission | None) -> Submission | WalletError:
    if stored is None:
        # The transfer has no row, so the insert stepped back before another transfer's transaction.
        return taken("raw_tx")
    return stored if stored.tx_hash == item.tx_hash else taken("transfer_id")
