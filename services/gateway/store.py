"""What clients write and read, in PostgreSQL: credentials, idempotency keys, transfers and their events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.core.client_keys import ClientKey
from services.gateway.credentials import Credential, Role
from services.gateway.transfer import State, Transfer
from services.gateway.transfer_rows import COLUMNS, insert_transfers, read_transfer, read_transfers
from services.runtime.db import Database


class IdempotencyRecord(NamedTuple):
    body_sha256: bytes
    transfer_ids: list[str]


class TransferEvent(NamedTuple):
    event_id: int
    transfer_id: str
    state: State
    at: datetime
    tx_hash: bytes | None
    failure: dict[str, Any] | None


class Store:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def check(self) -> None:
        """Raises WalletError: DATABASE_UNAVAILABLE."""
        async with self._database.begin() as connection:
            await connection.execute(text("SELECT cursor FROM follow LIMIT 1"))

    async def credential(self, credential_id: str) -> Credential | None:
        statement = text(
            "SELECT credential_id, name, role, secret_sha256, expires_at, revoked_at, "
            "ARRAY(SELECT public_key FROM client_keys k WHERE k.credential_id = c.credential_id "
            "AND k.revoked_at IS NULL) AS keys, "
            "ARRAY(SELECT public_key FROM client_keys k WHERE k.credential_id = c.credential_id "
            "AND k.revoked_at IS NOT NULL) AS revoked_keys FROM credentials c WHERE credential_id = :id"
        )
        async with self._database.begin() as connection:
            row = (await connection.execute(statement, {"id": credential_id})).one_or_none()
        if row is None:
            return None
        keys = [ClientKey(der) for der in row.keys] + [ClientKey(der, revoked=True) for der in row.revoked_keys]
        return Credential(
            row.credential_id, row.name, Role(row.role), row.secret_sha256, row.expires_at, row.revoked_at, tuple(keys)
        )

    async def use_signature(self, identity: bytes, until: datetime) -> bool:
        """Was this signature used for the first time now? It is remembered until `until`."""
        statement = text(
            "WITH gone AS (DELETE FROM used_signatures WHERE until < clock_timestamp()) "
            "INSERT INTO used_signatures (identity, until) VALUES (:identity, :until) ON CONFLICT DO NOTHING"
        )
        async with self._database.begin() as connection:
            return bool((await connection.execute(statement, {"identity": identity, "until": until})).rowcount)

    # -- Reading

    async def transfer(self, transfer_id: str) -> Transfer | None:
        found = await self.transfers([transfer_id])
        return found[0] if found else None

    async def transfers(self, transfer_ids: Sequence[str]) -> list[Transfer]:
        """In the order asked for; unknown ids are left out."""
        async with self._database.begin() as connection:
            return await read_transfers(connection, transfer_ids)

    async def page(self, limit: int, before: str | None, state: State | None, account_id: str | None) -> list[Transfer]:
        """Newest first; `before` is the last id of the page before."""
        wanted = {
            "transfer_id < :before": ("before", before),
            "state = :state": ("state", state),
            "account_id = :account_id": ("account_id", account_id),
        }
        given = {condition: pair for condition, pair in wanted.items() if pair[1] is not None}
        statement = text(
            f"SELECT {COLUMNS} FROM transfers WHERE {' AND '.join(['TRUE', *given])} "  # noqa: S608
            "ORDER BY transfer_id DESC LIMIT :limit"
        )
        async with self._database.begin() as connection:
            rows = (await connection.execute(statement, {**dict(given.values()), "limit": limit})).all()
        return [read_transfer(row) for row in rows]

    async def events(self, transfer_id: str, after: int) -> list[TransferEvent]:
        statement = text(
            "SELECT e.event_id, e.transfer_id, e.state, e.at, t.tx_hash, t.failure "
            "FROM transfer_events e JOIN transfers t USING (transfer_id) "
            "WHERE e.transfer_id = :id AND e.event_id > :after ORDER BY e.event_id"
        )
        async with self._database.begin() as connection:
            rows = (await connection.execute(statement, {"id": transfer_id, "after": after})).all()
        return [TransferEvent(r.event_id, r.transfer_id, State(r.state), r.at, r.tx_hash, r.failure) for r in rows]

    # -- Accepting

    async def idempotency(self, credential_id: str, key: str) -> IdempotencyRecord | None:
        async with self._database.begin() as connection:
            return await _read_key(connection, credential_id, key)

    async def accept(
        self, credential_id: str, key: str, body_sha256: bytes, transfers: Sequence[Transfer]
    ) -> IdempotencyRecord | None:
        """Store the transfers with the key in one commit; the key's record instead when another request was first."""
        claim = text(
            "INSERT INTO idempotency_keys (credential_id, key, body_sha256, transfer_ids) "
            "VALUES (:credential_id, :key, :sha256, CAST(:ids AS text[])) ON CONFLICT DO NOTHING"
        )
        values = {"credential_id": credential_id, "key": key, "sha256": body_sha256}
        async with self._database.begin() as connection:
            # A concurrent request with the same key waits here for the first one's commit.
            claimed = await connection.execute(claim, {**values, "ids": [t.transfer_id for t in transfers]})
            if claimed.rowcount == 0:
                return await _read_key(connection, credential_id, key)
            await insert_transfers(connection, transfers)
        return None


async def _read_key(connection: AsyncConnection, credential_id: str, key: str) -> IdempotencyRecord | None:
    statement = text(
        "SELECT body_sha256, transfer_ids FROM idempotency_keys WHERE credential_id = :credential_id AND key = :key"
    )
    row = (await connection.execute(statement, {"credential_id": credential_id, "key": key})).one_or_none()
    return IdempotencyRecord(row.body_sha256, row.transfer_ids) if row is not None else None
