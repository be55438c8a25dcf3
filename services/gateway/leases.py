"""Who works on what: one heartbeat a process keeps all its leases, on transfers and on the duties that one worker has.

Rows are locked in the order of their ids everywhere, so that the saga and the follower never wait in a circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import text

from services.gateway.transfer import AccountKey, Transfer
from services.gateway.transfer_rows import COLUMNS, read_transfer
from services.runtime.db import Database

# A worker's leases are alive while its row in `workers` is.
LEASE_FREE = (
    "(t.lease_owner IS NULL OR NOT EXISTS "
    "(SELECT 1 FROM workers w WHERE w.owner = t.lease_owner AND w.until > clock_timestamp()))"
)
_DUE = f"t.next_attempt_at <= clock_timestamp() AND {LEASE_FREE}"


class Leases:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def beat(self, owner: str, lease_s: float) -> None:
        """Keep this worker's leases alive for `lease_s` more seconds, and forget workers that ended long ago."""
        statement = text(
            "WITH gone AS (DELETE FROM workers WHERE until < clock_timestamp() - interval '1 hour') "
            "INSERT INTO workers (owner, until) VALUES (:owner, clock_timestamp() + :lease) "
            "ON CONFLICT (owner) DO UPDATE SET until = EXCLUDED.until"
        )
        async with self._database.begin() as connection:
            await connection.execute(statement, {"owner": owner, "lease": timedelta(seconds=lease_s)})

    async def leave(self, owner: str) -> None:
        """End all leases of this worker at once."""
        async with self._database.begin() as connection:
            await connection.execute(text("DELETE FROM workers WHERE owner = :owner"), {"owner": owner})

    async def due_accounts(self) -> list[AccountKey]:
        statement = text(f"SELECT DISTINCT chain_id, from_address FROM transfers t WHERE {_DUE}")  # noqa: S608
        async with self._database.begin() as connection:
            return [(row.chain_id, row.from_address) for row in (await connection.execute(statement)).all()]

    async def claim(self, owner: str, account: AccountKey, limit: int) -> list[Transfer]:
        """Take the lease of up to `limit` due transfers of an account, oldest first; each gets a new fencing number."""
        statement = text(
            f"UPDATE transfers SET lease_owner = :owner, fencing = fencing + 1 WHERE transfer_id IN ("  # noqa: S608
            "SELECT t.transfer_id FROM transfers t "
            f"WHERE t.chain_id = :chain_id AND t.from_address = :address AND {_DUE} "
            f"ORDER BY t.transfer_id LIMIT :limit FOR UPDATE SKIP LOCKED) RETURNING {COLUMNS}"
        )
        values = {"owner": owner, "chain_id": account[0], "address": account[1], "limit": limit}
        async with self._database.begin() as connection:
            rows = (await connection.execute(statement, values)).all()
        return sorted((read_transfer(row) for row in rows), key=lambda transfer: transfer.transfer_id)

    async def claim_one(self, owner: str, transfer_id: str) -> list[Transfer]:
        """The same for one transfer; nothing when it is not due, or another worker has it."""
        statement = text(
            f"UPDATE transfers t SET lease_owner = :owner, fencing = fencing + 1 "  # noqa: S608
            f"WHERE t.transfer_id = :id AND {_DUE} RETURNING {COLUMNS}"
        )
        async with self._database.begin() as connection:
            rows = (await connection.execute(statement, {"owner": owner, "id": transfer_id})).all()
        return [read_transfer(row) for row in rows]

    async def release(self, owner: str, transfer_ids: Sequence[str]) -> None:
        statement = text(
            "UPDATE transfers SET lease_owner = NULL "
            "WHERE transfer_id = ANY(CAST(:ids AS text[])) AND lease_owner = :owner"
        )
        async with self._database.begin() as connection:
            await connection.execute(statement, {"ids": list(transfer_ids), "owner": owner})

    async def take(self, owner: str, duty: str) -> int | None:
        """The duty's cursor, when this worker holds its lease or can take it."""
        statement = text(
            "UPDATE follow t SET lease_owner = :owner WHERE t.name = :duty "  # noqa: S608
            f"AND (t.lease_owner = :owner OR {LEASE_FREE}) RETURNING t.cursor"
        )
        async with self._database.begin() as connection:
            row = (await connection.execute(statement, {"owner": owner, "duty": duty})).one_or_none()
        return row.cursor if row is not None else None
