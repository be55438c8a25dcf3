"""Fee bumps in PostgreSQL: which is wanted, how far it is, and that broadcaster holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.core.transactions import tx_hash as tx_hash_of
from services.gateway.progress import fenced_change
from services.gateway.transfer import Transfer
from services.runtime.db import Database


class Replacement(NamedTuple):
    transfer_id: str
    number: int
    unsigned_tx: bytes
    raw_tx: bytes | None
    tx_hash: bytes | None


class Stall(NamedTuple):
    """What broadcaster says of the newest transaction of a transfer; `bump` where a higher fee is the answer."""

    transfer_id: str
    cause: str
    newest_tx_hash: bytes
    bump: bool


class ReplacementRows:
    """Commits are fenced like the saga's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def wanted(self, transfers: Sequence[Transfer]) -> dict[str, Replacement]:
        """What is stored of the replacements that these transfers want, by transfer."""
        async with self._database.begin() as connection:
            rows = (await connection.execute(_WANTED, {"ids": [t.transfer_id for t in transfers]})).all()
        return {row.transfer_id: Replacement(*row) for row in rows}

    async def built(self, rows: Sequence[tuple[Transfer, bytes]]) -> dict[str, Replacement]:
        """Store each unsigned replacement unless one of its number is there; what is stored now."""
        if not rows:
            return {}
        values = {
            "ids": [transfer.transfer_id for transfer, _ in rows],
            "fencing": [transfer.fencing for transfer, _ in rows],
            "numbers": [transfer.replacement_wanted for transfer, _ in rows],
            "txs": [unsigned_tx for _, unsigned_tx in rows],
        }
        async with self._database.begin() as connection:
            await connection.execute(_INSERT, values)
            found = (await connection.execute(_WANTED, {"ids": values["ids"]})).all()
        return {row.transfer_id: Replacement(*row) for row in found}

    async def signed(self, rows: Sequence[tuple[Transfer, bytes, bytes]]) -> set[str]:
        """raw_tx and tx_hash of the replacement that each transfer wants."""
        if not rows:
            return set()
        values = {
            "ids": [row[0].transfer_id for row in rows],
            "fencing": [row[0].fencing for row in rows],
            "numbers": [row[0].replacement_wanted for row in rows],
            "raws": [row[1] for row in rows],
            "hashes": [row[2] for row in rows],
        }
        async with self._database.begin() as connection:
            return {row.transfer_id for row in (await connection.execute(_SIGN, values)).all()}

    async def handed_over(self, rows: Sequence[tuple[Transfer, Replacement]]) -> set[str]:
        """Broadcaster holds it: it is the newest version. A later one that is wanted by now stays wanted."""
        return await self._change(
            _HANDED_OVER,
            [row[0] for row in rows],
            number=[row[1].number for row in rows],
            tx_hash=[row[1].tx_hash for row in rows],
        )

    async def given_up(self, transfers: Sequence[Transfer]) -> set[str]:
        """No longer wanted: mined, superseded or voided."""
        return await self._change(_GIVEN_UP, transfers, number=[t.replacement_wanted for t in transfers])

    async def paused(self, rows: Sequence[tuple[Transfer, str | None, float]]) -> set[str]:
        """(transfer, what is in the way if it is to be shown, seconds until the next try)."""
        return await self._change(
            _PAUSED, [row[0] for row in rows], stall=[row[1] for row in rows], delay_s=[row[2] for row in rows]
        )

    async def _change(self, statement: Any, transfers: Sequence[Transfer], **columns: list[Any]) -> set[str]:
        if not transfers:
            return set()
        values = {"ids": [t.transfer_id for t in transfers], "fencing": [t.fencing for t in transfers], **columns}
        async with self._database.begin() as connection:
            return {row.transfer_id for row in (await connection.execute(statement, values)).all()}


async def enter_stalls(connection: AsyncConnection, stalls: Sequence[Stall]) -> None:
    """Note why these transfers, whose rows are locked, are not mined, and want the next replacement where it helps.

    What is said of another version than the newest that is signed is stale and ignored; so is the wish to bump what a
    superseding link is to outbid.
    """
    by_id = {stall.transfer_id: stall for stall in stalls}
    rows = (await connection.execute(_NEWEST, {"ids": list(by_id)})).all()
    entered: list[tuple[Stall, int]] = []
    for row in rows:
        stall = by_id[row.transfer_id]
        newest_tx_hash = row.tx_hash or (tx_hash_of(row.raw_tx) if row.raw_tx else None)
        if stall.newest_tx_hash == newest_tx_hash:
            wanted = row.number + 1 if stall.bump and not row.superseded else 0
            entered.append((stall, wanted))
    if entered:
        values = {
            "ids": [stall.transfer_id for stall, _ in entered],
            "stalls": [stall.cause for stall, _ in entered],
            "wanted": [wanted for _, wanted in entered],
        }
        await connection.execute(_ENTER_STALLS, values)


_WANTED = text(
    "SELECT r.transfer_id, r.number, r.unsigned_tx, r.raw_tx, r.tx_hash FROM replacements r "
    "JOIN transfers t ON t.transfer_id = r.transfer_id AND t.replacement_wanted = r.number "
    "WHERE r.transfer_id = ANY(CAST(:ids AS text[]))"
)
_INSERT = text(
    """
    INSERT INTO replacements (transfer_id, number, unsigned_tx)
    SELECT i.transfer_id, i.number, i.unsigned_tx
    FROM unnest(CAST(:ids AS text[]), CAST(:fencing AS bigint[]), CAST(:numbers AS integer[]), CAST(:txs AS bytea[]))
        AS i(transfer_id, fencing, number, unsigned_tx)
    JOIN transfers t ON t.transfer_id = i.transfer_id AND t.fencing = i.fencing
    ORDER BY i.transfer_id ON CONFLICT DO NOTHING
    """
)
_SIGN = text(
    """
    UPDATE replacements r SET raw_tx = i.raw_tx, tx_hash = i.tx_hash
    FROM unnest(CAST(:ids AS text[]), CAST(:fencing AS bigint[]), CAST(:numbers AS integer[]), CAST(:raws AS bytea[]),
                CAST(:hashes AS bytea[])) AS i(transfer_id, fencing, number, raw_tx, tx_hash)
    JOIN transfers t ON t.transfer_id = i.transfer_id AND t.fencing = i.fencing
    WHERE r.transfer_id = i.transfer_id AND r.number = i.number
    RETURNING r.transfer_id
    """
)
_NO_LONGER = "replacement_wanted = CASE WHEN t.replacement_wanted > item.number THEN t.replacement_wanted END"
_STILL_DUE = "next_attempt_at = CASE WHEN t.replacement_wanted > item.number THEN t.next_attempt_at END"
_HANDED_OVER = fenced_change(
    f"{_NO_LONGER}, {_STILL_DUE}, lease_owner = NULL, attempts = 0, "
    "replacement = greatest(t.replacement, item.number), "
    "stall = CASE WHEN t.replacement_wanted > item.number THEN t.stall END, "
    "tx_hash = CASE WHEN t.state IN ('SIGNED', 'SUBMITTED') THEN item.tx_hash ELSE t.tx_hash END",
    number="integer",
    tx_hash="bytea",
)
_GIVEN_UP = fenced_change(f"{_NO_LONGER}, {_STILL_DUE}, lease_owner = NULL, attempts = 0", number="integer")
_PAUSED = fenced_change(
    "stall = coalesce(item.stall, t.stall), lease_owner = NULL, attempts = 0, "
    "next_attempt_at = clock_timestamp() + item.delay_s * interval '1 second'",
    stall="text",
    delay_s="double precision",
)
_NEWEST = text(
    """
    SELECT t.transfer_id, t.raw_tx, coalesce(r.number, 0) AS number, r.tx_hash,
        t.superseded_by IS NOT NULL AND s.state IS DISTINCT FROM 'FAILED' AS superseded
    FROM transfers t LEFT JOIN transfers s ON s.transfer_id = t.superseded_by
    LEFT JOIN LATERAL (
        SELECT number, tx_hash FROM replacements
        WHERE transfer_id = t.transfer_id AND raw_tx IS NOT NULL ORDER BY number DESC LIMIT 1
    ) r ON TRUE
    WHERE t.transfer_id = ANY(CAST(:ids AS text[])) AND t.state IN ('SIGNED', 'SUBMITTED')
    """
)
# One that is wanted already is being worked on, or paused: it is not hurried.
_ENTER_STALLS = text(
    """
    UPDATE transfers t SET updated_at = now(), stall = i.stall,
        replacement_wanted = CASE WHEN i.wanted > 0 THEN i.wanted ELSE t.replacement_wanted END,
        next_attempt_at = CASE WHEN i.wanted > 0 AND t.replacement_wanted IS DISTINCT FROM i.wanted
            THEN clock_timestamp() ELSE t.next_attempt_at END
    FROM unnest(CAST(:ids AS text[]), CAST(:stalls AS text[]), CAST(:wanted AS integer[]))
        AS i(transfer_id, stall, wanted)
    WHERE t.transfer_id = i.transfer_id
    """
)
