"""What PostgreSQL says of an account's nonces that the chain has not mined."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from sqlalchemy import text

from services.core.addresses import Address
from services.runtime.db import Database
from services.txbuilder.store import AccountKey


@dataclass(frozen=True, slots=True)
class Slot:
    """A nonce and what is recorded of it: a holder, a superseding link beside it, or "": it was given back."""

    nonce: int
    transfer_id: str
    supersedes: bool
    # It has been so for as long as was asked.
    old: bool


class GapStore:
    """Every method raises WalletError DATABASE_UNAVAILABLE."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def unfinished(
        self, chain_ids: Collection[str], older_than_s: float, after: AccountKey | None, limit: int
    ) -> list[AccountKey]:
        """Accounts with a reservation of that age that was not known to be final, when they were looked at last.

        The first `limit` behind `after`, by chain and address.
        """
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text("""
                    SELECT a.chain_id, a.address FROM txbuilder.accounts a
                    WHERE a.next_nonce > a.finalized_nonce AND a.chain_id = ANY (CAST(:chain_ids AS text[]))
                    AND EXISTS (
                        SELECT FROM txbuilder.reservations r
                        WHERE r.chain_id = a.chain_id AND r.address = a.address AND r.nonce >= a.finalized_nonce
                            AND (r.supersedes IS NULL OR r.supersedes = '')
                            AND r.reserved_at < clock_timestamp() - CAST(:age AS interval)
                    )
                    AND (a.chain_id, a.address) > (CAST(:after_chain_id AS text), CAST(:after_address AS bytea))
                    ORDER BY a.chain_id, a.address LIMIT :limit
                """),
                {
                    "chain_ids": sorted(chain_ids),
                    "age": timedelta(seconds=older_than_s),
                    "after_chain_id": after.chain_id if after is not None else "",
                    "after_address": after.address if after is not None else b"",
                    "limit": limit,
                },
            )
            return [AccountKey(row.chain_id, Address(row.address)) for row in rows]

    async def retire(self, account: AccountKey, finalized_nonce: int) -> None:
        """Everything below is final: it is never looked at again, and what was given back there is given to nobody."""
        async with self._database.begin() as connection:
            raised = await connection.execute(
                text("""
                    UPDATE txbuilder.accounts SET finalized_nonce = :finalized
                    WHERE chain_id = :chain_id AND address = :address AND finalized_nonce < :finalized
                """),
                {**account.columns, "finalized": Decimal(finalized_nonce)},
            )
            if raised.rowcount:
                await connection.execute(
                    text("""
                        DELETE FROM txbuilder.free_nonces
                        WHERE chain_id = :chain_id AND address = :address AND nonce < :finalized
                    """),
                    {**account.columns, "finalized": Decimal(finalized_nonce)},
                )

    async def slots(self, account: AccountKey, from_nonce: int, older_than_s: float, limit: int) -> list[Slot]:
        """What is recorded of the account's nonces from `from_nonce` on, in order; the first `limit` of a kind."""
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text("""
                    SELECT nonce, transfer_id, supersedes, since < clock_timestamp() - CAST(:age AS interval) AS old
                    FROM (
                        (
                            SELECT nonce, transfer_id, false AS supersedes, reserved_at AS since
                            FROM txbuilder.reservations
                            WHERE chain_id = :chain_id AND address = :address AND nonce >= :from_nonce
                                AND (supersedes IS NULL OR supersedes = '')
                            ORDER BY nonce LIMIT :limit
                        ) UNION ALL (
                            SELECT nonce, transfer_id, true, reserved_at
                            FROM txbuilder.reservations
                            WHERE chain_id = :chain_id AND address = :address AND nonce >= :from_nonce
                                AND supersedes IS NOT NULL AND supersedes <> ''
                            ORDER BY nonce LIMIT :limit
                        ) UNION ALL (
                            SELECT nonce, '', false, freed_at FROM txbuilder.free_nonces
                            WHERE chain_id = :chain_id AND address = :address AND nonce >= :from_nonce
                            ORDER BY nonce LIMIT :limit
                        )
                    ) AS recorded
                    ORDER BY nonce
                """),
                {
                    **account.columns,
                    "from_nonce": Decimal(from_nonce),
                    "age": timedelta(seconds=older_than_s),
                    "limit": limit,
                },
            )
            return [Slot(int(row.nonce), row.transfer_id, row.supersedes, row.old) for row in rows]
