"""The columns of `transfers`, and how rows are read and first written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.gateway.transfer import State, Transfer

# In the order of the class, so that a row is its arguments.
COLUMNS = ", ".join(field.name for field in fields(Transfer))
_INSERTED = {
    "transfer_id": "text",
    "account_id": "text",
    "chain_id": "text",
    "from_address": "bytea",
    "to_address": "bytea",
    "value_wei": "text",
    "data": "bytea",
    "fees": "bytea",
    "key_id": "text",
    "key_version": "integer",
    "traceparent": "text",
    "personal": "bytea",
    "created_at": "timestamptz",
    "nonce": "bigint",
    "supersedes": "text",
}


def read_transfer(row: Row[Any]) -> Transfer:
    values: Sequence[Any] = row
    transfer = Transfer(*values)
    transfer.state = State(transfer.state)
    return transfer


async def read_transfers(connection: AsyncConnection, transfer_ids: Sequence[str]) -> list[Transfer]:
    """In the order asked for; unknown ids are left out."""
    rows = (await connection.execute(_SELECT, {"ids": list(transfer_ids)})).all()
    by_id = {row.transfer_id: read_transfer(row) for row in rows}
    return [by_id[name] for name in transfer_ids if name in by_id]


async def lock_transfer(connection: AsyncConnection, transfer_id: str) -> Transfer | None:
    row = (await connection.execute(_LOCK, {"id": transfer_id})).one_or_none()
    return read_transfer(row) if row is not None else None


async def insert_transfers(connection: AsyncConnection, transfers: Sequence[Transfer]) -> None:
    """New rows, with their first events."""
    await connection.execute(_INSERT, _columns_of(transfers))


async def insert_unless_stored(connection: AsyncConnection, transfer: Transfer) -> None:
    """The same for one whose id is its meaning: a second one is the first."""
    await connection.execute(_INSERT_UNLESS_STORED, _columns_of([transfer]))


def _columns_of(transfers: Sequence[Transfer]) -> dict[str, list[Any]]:
    return {name: [getattr(transfer, name) for transfer in transfers] for name in _INSERTED}


def _insertion(on_conflict: str) -> Any:
    return text(
        f"""
        WITH item AS (
            SELECT * FROM unnest({", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in _INSERTED.items())})
                AS i({", ".join(_INSERTED)})
        ), stored AS (
            INSERT INTO transfers (state, updated_at, {", ".join(_INSERTED)})
            SELECT 'ACCEPTED', created_at, {", ".join(_INSERTED)} FROM item {on_conflict}
            RETURNING transfer_id, created_at
        )
        INSERT INTO transfer_events (transfer_id, state, at)
        SELECT transfer_id, 'ACCEPTED', created_at FROM stored ORDER BY transfer_id
        """  # noqa: S608
    )


_INSERT = _insertion("")
_INSERT_UNLESS_STORED = _insertion("ON CONFLICT (transfer_id) DO NOTHING")
_SELECT = text(f"SELECT {COLUMNS} FROM transfers WHERE transfer_id = ANY(CAST(:ids AS text[]))")  # noqa: S608
_LOCK = text(f"SELECT {COLUMNS} FROM transfers WHERE transfer_id = :id FOR UPDATE")  # noqa: S608
