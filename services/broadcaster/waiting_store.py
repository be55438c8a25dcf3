"""Submissions that wait for a block: which are stalled, and which can never be mined. Rows that the leader of a chain
writes, one commit a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from services.broadcaster.leader_transactions import EVENT, SHOWN, LeaderTransactions, lock_events
from services.broadcaster.submission import StallCause


@dataclass(frozen=True, slots=True)
class Waiting:
    """A submission that nodes were asked to take, and no block that was watched holds."""

    id: int
    transfer_id: str
    account: bytes
    nonce: int
    tx_hash: bytes
    versions: tuple[bytes, ...]  # every transaction of the transfer, the newest first
    submitted_s: float  # how long it has waited
    stall: StallCause | None


_WAITING = """
    SELECT s.id, s.transfer_id, s.account, s.nonce, s.tx_hash, s.stall,
           extract(epoch FROM clock_timestamp() - s.submitted_at) AS submitted_s,
           ARRAY(SELECT v.tx_hash FROM broadcaster.versions v WHERE v.submission_id = s.id) AS versions
    FROM broadcaster.submissions s
    WHERE s.chain_id = :chain_id AND s.is_open AND NOT s.is_queued AND s.block_number IS NULL
"""


class WaitingStore:
    def __init__(self, transactions: LeaderTransactions) -> None:
        self._transactions = transactions
        self._chain_id = transactions.chain_id

    async def first_of_accounts(self, age_s: float) -> list[Waiting]:
        """Of each account the lowest nonce that has waited for `age_s`."""
        return await self._waiting(
            f"SELECT DISTINCT ON (account) * FROM ({_WAITING}"  # noqa: S608 - constants
            " AND s.submitted_at < clock_timestamp() - make_interval(secs => :age_s)) w ORDER BY account, nonce",
            age_s=age_s,
        )

    async def below(self, account: bytes, nonce: int, limit: int) -> list[Waiting]:
        """What waits below `nonce`, lowest first."""
        return await self._waiting(
            f"{_WAITING} AND s.account = :account AND s.nonce < :nonce ORDER BY s.nonce LIMIT :limit",
            account=account,
            nonce=nonce,
            limit=limit,
        )

    async def of_transactions(self, tx_hashes: Sequence[bytes]) -> list[Waiting]:
        """What these, whichever version they are, belong to."""
        return await self._waiting(
            f"""{_WAITING} AND s.id IN (
                SELECT id FROM broadcaster.submissions WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[]))
                UNION SELECT submission_id FROM broadcaster.versions WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[])))
            """,  # noqa: S608
            tx_hashes=list(tx_hashes),
        )

    async def _waiting(self, query: str, **parameters: object) -> list[Waiting]:
        async with self._transactions.statement() as connection:
            rows = await connection.execute(text(query), {"chain_id": self._chain_id, **parameters})
            return [
                Waiting(
                    row.id,
                    row.transfer_id,
                    row.account,
                    row.nonce,
                    row.tx_hash,
                    (row.tx_hash, *row.versions),
                    float(row.submitted_s or 0.0),
                    StallCause(row.stall) if row.stall else None,
                )
                for row in rows
            ]

    async def stall(self, waiting: Sequence[Waiting], at: datetime) -> int:
        """Mark these as not mined, unless they were replaced or mined meanwhile; how many were."""
        return await self._mark("stall = 'NOT_MINED'", "AND stall IS NULL AND state = 'SUBMITTED'", waiting, at)

    async def spend(self, waiting: Sequence[Waiting], at: datetime) -> int:
        """End these, whose nonces others have for good, unless they were replaced or mined meanwhile; how many were."""
        return await self._mark("state = 'NONCE_SPENT', stall = NULL", "AND is_open", waiting, at)

    async def _mark(self, change: str, condition: str, waiting: Sequence[Waiting], at: datetime) -> int:
        async with self._transactions.begin() as connection:
            await lock_events(connection)
            marked = await connection.execute(
                text(f"""
                    WITH marked AS (
                        UPDATE broadcaster.submissions SET {change}
                        FROM unnest(CAST(:ids AS bigint[]), CAST(:tx_hashes AS bytea[])) AS w (id, hash)
                        WHERE submissions.id = w.id AND tx_hash = w.hash AND block_number IS NULL {condition}
                        RETURNING submissions.*
                    )
                    INSERT INTO broadcaster.events ({EVENT}) SELECT {SHOWN}, :at FROM marked ORDER BY id
                """),  # noqa: S608
                {"ids": [one.id for one in waiting], "tx_hashes": [one.tx_hash for one in waiting], "at": at},
            )
            return marked.rowcount
