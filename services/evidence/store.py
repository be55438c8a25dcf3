"""What `evidence` keeps in PostgreSQL. Every append is one statement, so one commit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg
from sqlalchemy import text

from services.core.merkle import Frontier
from services.core.tiles import WIDTH
from services.evidence.tree import FullTile, TreeEdge, full_tiles_before, rebuild_edge
from services.runtime.db import Database


@dataclass(slots=True)  # one an entry, and a frozen one takes four times as long to make
class NewEntry:
    """One entry as it is inserted."""

    index: int
    link_id: str
    step: int
    entry_id: str
    leaf: bytes
    leaf_hash: bytes
    salt: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """One entry as it is read; salt and body are None once erased."""

    index: int
    link_id: str
    step: int
    entry_id: str
    leaf: bytes
    leaf_hash: bytes
    salt: bytes | None
    body: bytes | None


@dataclass(frozen=True)
class StoredCheckpoint:
    tree_size: int
    root_hash: bytes
    note: str


@dataclass
class LogHead:
    """The log's end as one holder of the lease took it over; `epoch` fences every earlier holder."""

    edge: TreeEdge
    # Entries in the database, and its frontier.
    committed: int
    frontier: bytes
    last_at: datetime | None
    epoch: int


class LinkIsKnown(Exception):
    """An entry was placed as the first of its link, which has entries in the log. Nothing was written."""


_LINK_CONSTRAINTS = ("entries_step_once", "entries_entry_id_once")

# One statement: the head moves by compare-and-set, and nothing is inserted unless it moved. The old frontier stands
# for the whole tree: a restored database may have come to the same epoch and size by other entries.
# What has one size, or is text without a comma, travels as one value: the driver looks twice at each item of an array.
_APPEND_ENTRIES = """
WITH moved AS (
    UPDATE evidence.log_head
    SET size = $3, frontier = $4, last_at = $5,
        lease_until = clock_timestamp() + make_interval(secs => $6)
    WHERE epoch = $1 AND frontier = $2
    RETURNING 1
), items AS MATERIALIZED (
    SELECT $7 + number - 1 AS index, link_id, step, entry_id, leaf, body,
           CAST((number - 1) * 32 + 1 AS integer) AS place
    FROM unnest(string_to_array($8, ','), CAST(string_to_array($9, ',') AS integer[]),
                string_to_array($10, ','), CAST($11 AS bytea[]), CAST($12 AS bytea[]))
         WITH ORDINALITY AS item (link_id, step, entry_id, leaf, body, number)
    WHERE EXISTS (SELECT FROM moved)
), new_entries AS (
    INSERT INTO evidence.entries (index, link_id, step, entry_id, leaf, leaf_hash)
    SELECT index, link_id, step, entry_id, leaf, substring(CAST($13 AS bytea), place, 32) FROM items
), new_bodies AS (
    INSERT INTO evidence.bodies (index, salt, body)
    SELECT index, substring(CAST($14 AS bytea), place, 32), body FROM items
)
"""
_APPEND_TILES = """
, new_tiles AS (
    INSERT INTO evidence.tiles (level, number, hashes, root)
    SELECT * FROM unnest(CAST($15 AS smallint[]), CAST($16 AS bigint[]), CAST($17 AS bytea[]),
                         CAST($18 AS bytea[]))
    WHERE EXISTS (SELECT FROM moved)
)
"""
_HAS_MOVED = "SELECT count(*) FROM moved"
# Most commits of a few entries fill no tile.
_APPEND = _APPEND_ENTRIES + _HAS_MOVED
_APPEND_WITH_TILES = _APPEND_ENTRIES + _APPEND_TILES + _HAS_MOVED

_RENEW = """
UPDATE evidence.log_head SET lease_until = clock_timestamp() + make_interval(secs => $2) WHERE epoch = $1 RETURNING 1
"""

# A body at a time by its key: without statistics the planner would read all bodies.
_ENTRIES_OF_LINKS = """
SELECT e.index, e.link_id, e.step, e.entry_id, e.leaf, e.leaf_hash, b.salt, b.body
FROM evidence.entries e
LEFT JOIN LATERAL (SELECT salt, body FROM evidence.bodies WHERE index = e.index OFFSET 0) b ON true
WHERE e.link_id = ANY ($1) ORDER BY e.index
"""


class Store:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def take_over(self, lease_s: float, held_epoch: int | None) -> LogHead | None:
        """Take the lease, and load the log's end under a new epoch; None while another holds it.

        A lease under `held_epoch` is the caller's own: it is taken at once, and a commit that may still be on its way
        under the old epoch comes to nothing.
        """
        async with self._database.begin() as connection:
            taken = await connection.execute(
                text("""
                    UPDATE evidence.log_head
                    SET epoch = epoch + 1, lease_until = clock_timestamp() + make_interval(secs => :lease_s)
                    WHERE lease_until < clock_timestamp() OR epoch = CAST(:held_epoch AS bigint)
                    RETURNING epoch, size, frontier, NULLIF(last_at, '-infinity') AS last_at
                """),
                {"lease_s": lease_s, "held_epoch": held_epoch},
            )
            row = taken.one_or_none()
            if row is None:
                return None
            leaves = await connection.execute(
                text("SELECT leaf_hash FROM evidence.entries WHERE index >= :first ORDER BY index"),
                {"first": full_tiles_before(0, row.size) * WIDTH},
            )
            newest = list(leaves.scalars())
            roots: dict[int, list[bytes]] = {}
            level = 0
            while full_tiles_before(level, row.size):
                tiles = await connection.execute(
                    text("SELECT root FROM evidence.tiles WHERE level = :level AND number >= :first ORDER BY number"),
                    {"level": level, "first": full_tiles_before(level + 1, row.size) * WIDTH},
                )
                roots[level] = list(tiles.scalars())
                level += 1
            edge = rebuild_edge(Frontier.from_bytes(row.frontier), newest, roots)
            return LogHead(edge, row.size, row.frontier, row.last_at, row.epoch)

    async def last_at(self) -> datetime | None:
        """Of the newest entry."""
        at: datetime | None = await self._database.value("SELECT NULLIF(last_at, '-infinity') FROM evidence.log_head")
        return at

    async def renew(self, epoch: int, lease_s: float) -> bool:
        """Keep the lease; False when a newer holder has raised the epoch."""
        return bool(await self._database.rows(_RENEW, epoch, lease_s))

    async def release(self, epoch: int) -> None:
        """End the lease early, so that a standby need not wait for it."""
        async with self._database.statement() as connection:
            await connection.execute(
                text("UPDATE evidence.log_head SET lease_until = '-infinity' WHERE epoch = :epoch"), {"epoch": epoch}
            )

    async def append(
        self,
        head: LogHead,
        edge: TreeEdge,
        at: datetime,
        lease_s: float,
        entries: list[NewEntry],
        tiles: list[FullTile],
    ) -> bool:
        """Insert `entries` behind the committed log, up to `edge`; False, and nothing written, if its head was another.

        Raises:
            LinkIsKnown: the step or the id of an entry is in its link already.
        """
        arguments: list[object] = [
            head.epoch,
            head.frontier,
            edge.size,
            edge.frontier.to_bytes(),
            at,
            lease_s,
            entries[0].index,
            ",".join([entry.link_id for entry in entries]),
            ",".join([str(entry.step) for entry in entries]),
            ",".join([entry.entry_id for entry in entries]),
            [entry.leaf for entry in entries],
            [entry.body for entry in entries],
            b"".join([entry.leaf_hash for entry in entries]),
            b"".join([entry.salt for entry in entries]),
        ]
        if tiles:
            arguments += [
                [tile.level for tile in tiles],
                [tile.number for tile in tiles],
                [tile.hashes for tile in tiles],
                [tile.root for tile in tiles],
            ]
        try:
            moved = await self._database.value(_APPEND_WITH_TILES if tiles else _APPEND, *arguments)
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name in _LINK_CONSTRAINTS:
                raise LinkIsKnown from error
            raise
        return bool(moved)

    async def entries_of_links(self, link_ids: list[str]) -> list[StoredEntry]:
        """Every entry of the links, in the order of the log."""
        return [StoredEntry(*row) for row in await self._database.rows(_ENTRIES_OF_LINKS, link_ids)]

    async def bodies(self, indexes: list[int]) -> dict[int, bytes]:
        """Bodies by index, without those that were erased."""
        rows = await self._database.rows("SELECT index, body FROM evidence.bodies WHERE index = ANY ($1)", indexes)
        return {row["index"]: row["body"] for row in rows}

    async def leaves(self, first: int, count: int) -> list[bytes]:
        """`count` leaves from index `first`, fewer at the log's end."""
        return await self._column("SELECT leaf FROM evidence.entries", "index", first, count)

    async def leaf_hashes(self, first: int, count: int) -> list[bytes]:
        """Like `leaves`."""
        return await self._column("SELECT leaf_hash FROM evidence.entries", "index", first, count)

    async def tile_roots(self, level: int, first: int, count: int) -> list[bytes]:
        """Roots of `count` full tiles of `level` from number `first`, fewer at the tree's edge."""
        return await self._column("SELECT root FROM evidence.tiles", "number", first, count, level)

    async def _column(self, select: str, key: str, first: int, count: int, level: int | None = None) -> list[bytes]:
        of_level = "" if level is None else " AND level = :level"
        query = f"{select} WHERE {key} >= :first AND {key} < :end{of_level} ORDER BY {key}"
        async with self._database.statement() as connection:
            bounds = {"first": first, "end": first + count} | ({} if level is None else {"level": level})
            return list((await connection.execute(text(query), bounds)).scalars())

    async def full_tile(self, level: int, number: int) -> bytes | None:
        async with self._database.statement() as connection:
            row = await connection.execute(
                text("SELECT hashes FROM evidence.tiles WHERE level = :level AND number = :number"),
                {"level": level, "number": number},
            )
            return row.scalar_one_or_none()

    async def size(self) -> int:
        async with self._database.statement() as connection:
            return int((await connection.execute(text("SELECT size FROM evidence.log_head"))).scalar_one())

    async def newest_checkpoint(self) -> StoredCheckpoint | None:
        async with self._database.statement() as connection:
            row = await connection.execute(
                text("SELECT tree_size, root_hash, note FROM evidence.checkpoints ORDER BY tree_size DESC LIMIT 1")
            )
            found = row.one_or_none()
            return StoredCheckpoint(found.tree_size, found.root_hash, found.note) if found else None

    async def add_checkpoint(self, checkpoint: StoredCheckpoint) -> None:
        """Store a checkpoint; one of the same size is there already after a crash between file and row."""
        async with self._database.statement() as connection:
            await connection.execute(
                text("""
                    INSERT INTO evidence.checkpoints (tree_size, root_hash, note) VALUES (:size, :root, :note)
                    ON CONFLICT (tree_size) DO NOTHING
                """),
                {"size": checkpoint.tree_size, "root": checkpoint.root_hash, "note": checkpoint.note},
            )
