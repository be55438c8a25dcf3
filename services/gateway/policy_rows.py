"""Proposed policies in PostgreSQL. A proposal's document never changes: its hash is its name."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import text

from services.runtime.db import Database


class Proposal(NamedTuple):
    sha256: bytes
    version: int
    document: bytes
    proposer: str
    traceparent: str
    created_at: datetime
    expires_at: datetime
    activated_at: datetime | None
    # {"reason", "message", "details"}: why the signer refused it.
    failure: dict[str, Any] | None


class PolicyRows:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def propose(
        self, sha256: bytes, version: int, document: bytes, proposer: str, traceparent: str, valid_s: float
    ) -> Proposal:
        """Store it unless it is there; what is stored now."""
        values = {
            "sha256": sha256,
            "version": version,
            "document": document,
            "proposer": proposer,
            "traceparent": traceparent,
            "valid": timedelta(seconds=valid_s),
        }
        async with self._database.begin() as connection:
            await connection.execute(_PROPOSE, values)
        stored = await self.proposal(sha256)
        assert stored is not None
        return stored

    async def proposal(self, sha256: bytes) -> Proposal | None:
        async with self._database.begin() as connection:
            row = (await connection.execute(_READ, {"sha256": sha256})).one_or_none()
        return Proposal(*row) if row is not None else None

    async def newest(self, limit: int) -> list[Proposal]:
        async with self._database.begin() as connection:
            return [Proposal(*row) for row in await connection.execute(_NEWEST, {"limit": limit})]

    async def open(self) -> list[Proposal]:
        """Neither in force, nor refused, nor expired a minute ago."""
        async with self._database.begin() as connection:
            return [Proposal(*row) for row in await connection.execute(_OPEN)]

    async def activated(self, sha256: bytes) -> None:
        async with self._database.begin() as connection:
            await connection.execute(_ACTIVATED, {"sha256": sha256})

    async def refused(self, sha256: bytes, failure: dict[str, Any]) -> None:
        async with self._database.begin() as connection:
            await connection.execute(_REFUSED, {"sha256": sha256, "failure": json.dumps(failure)})


_SELECT = (
    "SELECT sha256, version, document, proposer, traceparent, created_at, expires_at, activated_at, failure "
    "FROM policy_proposals "
)
_PROPOSE = text(
    "INSERT INTO policy_proposals (sha256, version, document, proposer, traceparent, expires_at) "
    "VALUES (:sha256, :version, :document, :proposer, :traceparent, clock_timestamp() + :valid) ON CONFLICT DO NOTHING"
)
_READ = text(_SELECT + "WHERE sha256 = :sha256")
_NEWEST = text(_SELECT + "ORDER BY created_at DESC LIMIT :limit")
# An approval that was stored in time is entered and counted, though a crash came between.
_OPEN = text(
    _SELECT + "WHERE activated_at IS NULL AND failure IS NULL AND expires_at > clock_timestamp() - interval '1 minute' "
    "ORDER BY created_at"
)
_ACTIVATED = text(
    "UPDATE policy_proposals SET activated_at = clock_timestamp() WHERE sha256 = :sha256 AND activated_at IS NULL"
)
_REFUSED = text(
    "UPDATE policy_proposals SET failure = CAST(:failure AS jsonb) "
    "WHERE sha256 = :sha256 AND activated_at IS NULL AND failure IS NULL"
)
