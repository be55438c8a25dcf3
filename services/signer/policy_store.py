"""Policy versions in PostgreSQL: the one with the highest number is in force."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.db import Database
from services.signer.restarting import in_transaction, rows


class PolicyRow(NamedTuple):
    version: int
    sha256: bytes
    document: bytes
    traceparent: str
    body: bytes  # of its entry in the log


_IN_FORCE = """
SELECT version, sha256, document, traceparent, body FROM signer.policy_versions ORDER BY version DESC LIMIT 1
"""

_INSERT = """
INSERT INTO signer.policy_versions (version, sha256, document, traceparent, body) VALUES ($1, $2, $3, $4, $5)
"""

# One writer at a time, so that the number only rises: two of them would not see each other's row.
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('signer.policy_versions'))"


class PolicyStore:
    """Every method raises WalletError DATABASE_UNAVAILABLE; whether a write that failed so took effect is unknown."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def clock(self) -> datetime:
        """The database's."""
        now: datetime = await self._database.value("SELECT now()")
        return now

    async def version(self) -> int | None:
        """The number in force; None where there is none yet."""
        version: int | None = await self._database.value("SELECT max(version) FROM signer.policy_versions")
        return version

    async def in_force(self) -> PolicyRow | None:
        found = await self._database.rows(_IN_FORCE)
        return PolicyRow(*found[0]) if found else None

    async def seed(self, row: PolicyRow) -> PolicyRow:
        """Store the first version where there is none; what is in force now."""
        return await in_transaction(self._database, lambda connection: _enter(connection, row, None))

    async def supersede(self, row: PolicyRow, version: int) -> PolicyRow:
        """Store a version that `version` has judged, where that one is in force still; what is in force now."""
        return await in_transaction(self._database, lambda connection: _enter(connection, row, version))


async def _enter(connection: AsyncConnection, row: PolicyRow, version: int | None) -> PolicyRow:
    await rows(connection, _LOCK)
    found = await rows(connection, _IN_FORCE)
    in_force = PolicyRow(*found[0]) if found else None
    if in_force is not None and in_force.version != version:
        return in_force
    await connection.exec_driver_sql(_INSERT, tuple(row))
    return row
