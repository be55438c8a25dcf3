"""The gateway's rows in PostgreSQL. Work on transfers is bulk: one statement a step, whatever the group's size.

Rows are locked in the order of their ids everywhere, so that the saga and the follower never wait in a circle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.core.errors import Reason, WalletError
from services.gateway.credentials import Credential, Role
from services.gateway.transfer import AccountKey, State, Transfer
from services.runtime.db import Database

_COLUMNS = (
    "transfer_id, state, account_id, chain_id, from_address, to_address, value_wei, data, fees, key_id, key_version, "
    "traceparent, personal, created_at, updated_at, unsigned_tx, nonce, raw_tx, tx_hash, block_number, "
    "receipt_status, failure, attempts, fencing"
)
# A worker's leases are alive while its row in `workers` is.
_LEASE_FREE = (
    "(t.lease_owner IS NULL OR NOT EXISTS "
    "(SELECT 1 FROM workers w WHERE w.owner = t.lease_owner AND w.until > clock_timestamp()))"
)
_DUE = f"t.next_attempt_at <= clock_timestamp() AND {_LEASE_FREE}"


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


class ChainChange(NamedTuple):
    """One transfer's state as broadcaster tells it, in its order."""

    transfer_id: str
    state: State
    at: datetime
    tx_hash: bytes
    block_number: int | None
    receipt_status: int | None


def _transfer(row: Row[Any]) -> Transfer:
    values = dict(row._mapping)
    values["state"] = State(values["state"])
    return Transfer(**values)


class Store:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def check(self) -> None:
        """Raises WalletError: DATABASE_UNAVAILABLE."""
        async with self._database.begin() as connection:
            await connection.execute(text("SELECT cursor FROM follow LIMIT 1"))

    async def credential(self, credential_id: str) -> Credential | None:
        statement = text(
            "SELECT credential_id, name, role, secret_sha256, expires_at, revoked_at FROM credentials "
            "WHERE credential_id = :id"
        )
        async with self._database.begin() as connection:
            row = (await connection.execute(statement, {"id": credential_id})).one_or_none()
        if row is None:
            return None
        return Credential(
            row.credential_id, row.name, Role(row.role), row.secret_sha256, row.expires_at, row.revoked_at
        )

    # -- Reading

    async def transfer(self, transfer_id: str) -> Transfer | None:
        found = await self.transfers([transfer_id])
        return found[0] if found else None

    async def transfers(self, transfer_ids: Sequence[str]) -> list[Transfer]:
        """In the order asked for; unknown ids are left out."""
        statement = text(f"SELECT {_COLUMNS} FROM transfers WHERE transfer_id = ANY(CAST(:ids AS text[]))")  # noqa: S608
        async with self._database.begin() as connection:
            rows = (await connection.execute(statement, {"ids": list(transfer_ids)})).all()
        by_id = {row.transfer_id: _transfer(row) for row in rows}
        return [by_id[name] for name in transfer_ids if name in by_id]

    async def page(self, limit: int, before: str | None, state: State | None, account_id: str | None) -> list[Transfer]:
        """Newest first; `before` is the last id of the page before."""
        wanted = {
            "transfer_id < :before": ("before", before),
            "state = :state": ("state", state),
            "account_id = :account_id": ("account_id", account_id),
        }
        given = {condition: pair for condition, pair in wanted.items() if pair[1] is not None}
        statement = text(
            f"SELECT {_COLUMNS} FROM transfers WHERE {' AND '.join(['TRUE', *given])} "  # noqa: S608
            "ORDER BY transfer_id DESC LIMIT :limit"
        )
        async with self._database.begin() as connection:
            rows = (await connection.execute(statement, {**dict(given.values()), "limit": limit})).all()
        return [_transfer(row) for row in rows]

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
            await connection.execute(_INSERT_TRANSFERS, _columns_of(transfers))
        return None

    # -- Leases

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
            f"ORDER BY t.transfer_id LIMIT :limit FOR UPDATE SKIP LOCKED) RETURNING {_COLUMNS}"
        )
        values = {"owner": owner, "chain_id": account[0], "address": account[1], "limit": limit}
        async with self._database.begin() as connection:
            rows = (await connection.execute(statement, values)).all()
        return sorted((_transfer(row) for row in rows), key=lambda transfer: transfer.transfer_id)

    async def release(self, owner: str, transfer_ids: Sequence[str]) -> None:
        statement = text(
            "UPDATE transfers SET lease_owner = NULL "
            "WHERE transfer_id = ANY(CAST(:ids AS text[])) AND lease_owner = :owner"
        )
        async with self._database.begin() as connection:
            await connection.execute(statement, {"ids": list(transfer_ids), "owner": owner})

    # -- The saga's commits: each answers the ids it changed; a row with another fencing number is left alone.

    async def built(self, rows: Sequence[tuple[Transfer, bytes, int]]) -> set[str]:
        return await self._change(
            _BUILT, [row[0] for row in rows], unsigned_tx=[row[1] for row in rows], nonce=[row[2] for row in rows]
        )

    async def signed(self, rows: Sequence[tuple[Transfer, bytes, bytes]]) -> set[str]:
        """raw_tx and tx_hash. The intent is entered: the personal fields go."""
        return await self._change(
            _SIGNED, [row[0] for row in rows], raw_tx=[row[1] for row in rows], tx_hash=[row[2] for row in rows]
        )

    async def handed_over(self, rows: Sequence[tuple[Transfer, bool]]) -> set[str]:
        """Broadcaster holds them: (transfer, already requested from a node). The follower does the rest."""
        return await self._change(_HANDED_OVER, [row[0] for row in rows], submitted=[row[1] for row in rows])

    async def failing(self, rows: Sequence[tuple[Transfer, dict[str, Any]]]) -> set[str]:
        return await self._change(_FAILING, [row[0] for row in rows], failure=[json.dumps(row[1]) for row in rows])

    async def not_failing(self, transfers: Sequence[Transfer]) -> set[str]:
        """A signature exists after all: try again from the row's state, now."""
        return await self._change(_NOT_FAILING, transfers)

    async def failed(self, transfers: Sequence[Transfer]) -> set[str]:
        return await self._change(_FAILED, transfers)

    async def postponed(self, rows: Sequence[tuple[Transfer, float]]) -> set[str]:
        """Give the lease back and try again after so many seconds."""
        return await self._change(_POSTPONED, [row[0] for row in rows], delay_s=[row[1] for row in rows])

    async def _change(self, statement: Any, transfers: Sequence[Transfer], **columns: list[Any]) -> set[str]:
        if not transfers:
            return set()
        values = {"ids": [t.transfer_id for t in transfers], "fencing": [t.fencing for t in transfers], **columns}
        async with self._database.begin() as connection:
            return {row.transfer_id for row in (await connection.execute(statement, values)).all()}

    # -- Following broadcaster

    async def take_cursor(self, owner: str) -> int | None:
        """The cursor, when this worker holds the follower's lease or can take it."""
        statement = text(
            "UPDATE follow t SET lease_owner = :owner WHERE t.name = 'broadcaster' "  # noqa: S608
            f"AND (t.lease_owner = :owner OR {_LEASE_FREE}) RETURNING t.cursor"
        )
        async with self._database.begin() as connection:
            row = (await connection.execute(statement, {"owner": owner})).one_or_none()
        return row.cursor if row is not None else None

    async def follow(self, owner: str, cursor: int, next_cursor: int, changes: Sequence[ChainChange]) -> set[str]:
        """Enter changes and move the cursor in one commit; answers the transfers that changed.

        Raises:
            WalletError: LEASE_LOST when another worker follows, or the cursor is not `cursor`; nothing is changed.
        """
        move = text(
            "UPDATE follow SET cursor = :next WHERE name = 'broadcaster' AND lease_owner = :owner AND cursor = :cursor"
        )
        async with self._database.begin() as connection:
            moved = await connection.execute(move, {"next": next_cursor, "owner": owner, "cursor": cursor})
            if moved.rowcount != 1:
                raise WalletError(Reason.LEASE_LOST, Reason.LEASE_LOST.meaning)
            states = await _lock_states(connection, sorted({change.transfer_id for change in changes}))
            # Only changes of state, and none after the last: a repeated event is no second one.
            entered: list[ChainChange] = []
            for change in changes:
                known = states.get(change.transfer_id)
                if known is None or known in (change.state, State.FINALIZED, State.FAILED):
                    continue
                states[change.transfer_id] = change.state
                entered.append(change)
            if entered:
                last = list({change.transfer_id: change for change in entered}.values())
                await connection.execute(_FOLLOWED, _change_columns(last))
                await connection.execute(_INSERT_EVENTS, _event_columns(entered))
        return {change.transfer_id for change in entered}


async def _read_key(connection: AsyncConnection, credential_id: str, key: str) -> IdempotencyRecord | None:
    statement = text(
        "SELECT body_sha256, transfer_ids FROM idempotency_keys WHERE credential_id = :credential_id AND key = :key"
    )
    row = (await connection.execute(statement, {"credential_id": credential_id, "key": key})).one_or_none()
    return IdempotencyRecord(row.body_sha256, row.transfer_ids) if row is not None else None


async def _lock_states(connection: AsyncConnection, transfer_ids: list[str]) -> dict[str, State]:
    statement = text(
        "SELECT transfer_id, state FROM transfers WHERE transfer_id = ANY(CAST(:ids AS text[])) "
        "ORDER BY transfer_id FOR UPDATE"
    )
    return {row.transfer_id: State(row.state) for row in await connection.execute(statement, {"ids": transfer_ids})}


def _saga_change(assignments: str, **types: str) -> Any:
    """A bulk UPDATE of fenced rows that enters an event where the state changes."""
    columns = "".join(f", CAST(:{name} AS {kind}[])" for name, kind in types.items())
    names = "".join(f", {name}" for name in types)
    return text(
        f"""
        WITH item AS (
            SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:fencing AS bigint[]){columns})
                AS i(transfer_id, fencing{names})
        ), locked AS (
            SELECT t.transfer_id, t.state FROM transfers t JOIN item USING (transfer_id)
            WHERE t.fencing = item.fencing ORDER BY t.transfer_id FOR UPDATE OF t
        ), changed AS (
            UPDATE transfers t SET updated_at = now(), {assignments}
            FROM item JOIN locked USING (transfer_id) WHERE t.transfer_id = item.transfer_id
            RETURNING t.transfer_id, t.state, locked.state AS old_state
        ), entered AS (
            INSERT INTO transfer_events (transfer_id, state, at)
            SELECT transfer_id, state, clock_timestamp() FROM changed WHERE state <> old_state ORDER BY transfer_id
        )
        SELECT transfer_id FROM changed
        """  # noqa: S608
    )


_END_LEASE = "lease_owner = NULL, next_attempt_at = NULL"
_BUILT = _saga_change(
    "state = 'BUILT', attempts = 0, unsigned_tx = item.unsigned_tx, nonce = item.nonce",
    unsigned_tx="bytea",
    nonce="bigint",
)
_SIGNED = _saga_change(
    "state = 'SIGNED', attempts = 0, personal = NULL, raw_tx = item.raw_tx, tx_hash = item.tx_hash",
    raw_tx="bytea",
    tx_hash="bytea",
)
# The follower may have been faster: a later state stays.
_HANDED_OVER = _saga_change(
    "state = CASE WHEN t.state = 'SIGNED' AND item.submitted THEN 'SUBMITTED' ELSE t.state END, attempts = 0, "
    + _END_LEASE,
    submitted="boolean",
)
_FAILING = _saga_change("failure = CAST(item.failure AS jsonb)", failure="text")
_NOT_FAILING = _saga_change("failure = NULL, lease_owner = NULL, next_attempt_at = clock_timestamp()")
_FAILED = _saga_change("state = 'FAILED', personal = NULL, " + _END_LEASE)
_POSTPONED = _saga_change(
    "attempts = t.attempts + 1, lease_owner = NULL, "
    "next_attempt_at = clock_timestamp() + item.delay_s * interval '1 second'",
    delay_s="double precision",
)

_TRANSFER_COLUMNS = {
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
}
_INSERT_TRANSFERS = text(
    f"""
    WITH item AS (
        SELECT * FROM unnest({", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in _TRANSFER_COLUMNS.items())})
            AS i({", ".join(_TRANSFER_COLUMNS)})
    ), stored AS (
        INSERT INTO transfers (state, updated_at, {", ".join(_TRANSFER_COLUMNS)})
        SELECT 'ACCEPTED', created_at, {", ".join(_TRANSFER_COLUMNS)} FROM item
    )
    INSERT INTO transfer_events (transfer_id, state, at)
    SELECT transfer_id, 'ACCEPTED', created_at FROM item ORDER BY transfer_id
    """  # noqa: S608
)
_FOLLOWED = text(
    """
    UPDATE transfers t SET state = i.state, updated_at = now(), block_number = i.block_number,
        receipt_status = i.receipt_status, tx_hash = i.tx_hash, lease_owner = NULL, next_attempt_at = NULL
    FROM unnest(CAST(:ids AS text[]), CAST(:states AS text[]), CAST(:blocks AS bigint[]), CAST(:statuses AS smallint[]),
                CAST(:hashes AS bytea[])) AS i(transfer_id, state, block_number, receipt_status, tx_hash)
    WHERE t.transfer_id = i.transfer_id
    """
)
_INSERT_EVENTS = text(
    """
    INSERT INTO transfer_events (transfer_id, state, at)
    SELECT transfer_id, state, at
    FROM unnest(CAST(:ids AS text[]), CAST(:states AS text[]), CAST(:times AS timestamptz[]))
        WITH ORDINALITY AS i(transfer_id, state, at, place) ORDER BY place
    """
)


def _columns_of(transfers: Sequence[Transfer]) -> dict[str, list[Any]]:
    return {name: [getattr(transfer, name) for transfer in transfers] for name in _TRANSFER_COLUMNS}


def _change_columns(changes: Sequence[ChainChange]) -> dict[str, list[Any]]:
    return {
        "ids": [change.transfer_id for change in changes],
        "states": [change.state.value for change in changes],
        "blocks": [change.block_number for change in changes],
        "statuses": [change.receipt_status for change in changes],
        "hashes": [change.tx_hash for change in changes],
    }


def _event_columns(changes: Sequence[ChainChange]) -> dict[str, list[Any]]:
    return {
        "ids": [change.transfer_id for change in changes],
        "states": [change.state.value for change in changes],
        "times": [change.at for change in changes],
    }
