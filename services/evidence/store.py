"""What `evidence` keeps in PostgreSQL. Every append is one statement, so one commit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import Row

from services.core.merkle import Frontier
from services.evidence.tree import TreeEdge, partial_number, rebuild_edge
from services.runtime.db import Database


@dataclass(frozen=True, slots=True)
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
    last_at: datetime | None
    epoch: int


# One statement: the head moves by compare-and-set, and nothing is inserted unless it moved.
_APPEND = text("""
WITH moved AS (
    UPDATE evidence.log_head
    SET size = :new_size, frontier = :frontier, last_at = :last_at,
        lease_until = clock_timestamp() + make_interval(secs => :lease_s)
    WHERE size = :size AND epoch = :epoch
    RETURNING 1
), new_entries AS (
    INSERT INTO evidence.entries (index, link_id, step, entry_id, leaf, leaf_hash)
    SELECT * FROM unnest(CAST(:indexes AS bigint[]), CAST(:link_ids AS text[]), CAST(:steps AS integer[]),
                         CAST(:entry_ids AS text[]), CAST(:leaves AS bytea[]), CAST(:leaf_hashes AS bytea[]))
    WHERE EXISTS (SELECT FROM moved)
), new_bodies AS (
    INSERT INTO evidence.bodies (index, salt, body)
    SELECT * FROM unnest(CAST(:indexes AS bigint[]), CAST(:salts AS bytea[]), CAST(:bodies AS bytea[]))
    WHERE EXISTS (SELECT FROM moved)
), new_tiles AS (
    INSERT INTO evidence.tiles (level, number, hashes)
    SELECT * FROM unnest(CAST(:tile_levels AS smallint[]), CAST(:tile_numbers AS bigint[]), CAST(:tiles AS bytea[]))
    WHERE EXISTS (SELECT FROM moved)
)
SELECT count(*) FROM moved
""")

_ENTRY_COLUMNS = "e.index, e.link_id, e.step, e.entry_id, e.leaf, e.leaf_hash, b.salt, b.body"


class Store:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def take_over(self, lease_s: float) -> LogHead | None:
        """Take the lease if nobody holds it, and load the log's end under a new epoch; None while another holds it."""
        async with self._database.begin() as connection:
            taken = await connection.execute(
                text("""
                    UPDATE evidence.log_head
                    SET epoch = epoch + 1, lease_until = clock_timestamp() + make_interval(secs => :lease_s)
                    WHERE lease_until < clock_timestamp()
                    RETURNING epoch, size, frontier, NULLIF(last_at, '-infinity') AS last_at
                """),
                {"lease_s": lease_s},
            )
            row = taken.one_or_none()
            if row is None:
                return None
            frontier = Frontier.from_bytes(row.frontier)
            leaves = await connection.execute(
                text("SELECT leaf_hash FROM evidence.entries WHERE index >= :first ORDER BY index"),
                {"first": partial_number(0, row.size) << 8},
            )
            newest = [leaf.leaf_hash for leaf in leaves]
            full_tiles: dict[int, list[bytes]] = {}
            level = 0
            while partial_number(level, row.size):
                tiles = await connection.execute(
                    text("SELECT hashes FROM evidence.tiles WHERE level = :level AND number >= :first ORDER BY number"),
                    {"level": level, "first": partial_number(level + 1, row.size) << 8},
                )
                full_tiles[level] = [tile.hashes for tile in tiles]
                level += 1
            return LogHead(rebuild_edge(frontier, newest, full_tiles), row.last_at, row.epoch)

    async def renew(self, epoch: int, lease_s: float) -> bool:
        """Keep the lease; False when a newer holder has raised the epoch."""
        async with self._database.begin() as connection:
            renewed = await connection.execute(
                text("""
                    UPDATE evidence.log_head SET lease_until = clock_timestamp() + make_interval(secs => :lease_s)
                    WHERE epoch = :epoch
                """),
                {"epoch": epoch, "lease_s": lease_s},
            )
            return renewed.rowcount == 1

    async def release(self, epoch: int) -> None:
        """End the lease early, so that a standby need not wait for it."""
        async with self._database.begin() as connection:
            await connection.execute(
                text("UPDATE evidence.log_head SET lease_until = '-infinity' WHERE epoch = :epoch"), {"epoch": epoch}
            )

    async def append(
        self,
        size: int,
        epoch: int,
        frontier: Frontier,
        last_at: datetime,
        lease_s: float,
        entries: list[NewEntry],
        tiles: list[tuple[int, int, bytes]],
    ) -> bool:
        """Insert `entries` behind a log of `size`; False, and nothing written, when the head was not (size, epoch)."""
        async with self._database.statement() as connection:
            moved = await connection.execute(
                _APPEND,
                {
                    "size": size,
                    "epoch": epoch,
                    "new_size": frontier.size,
                    "frontier": frontier.to_bytes(),
                    "last_at": last_at,
                    "lease_s": lease_s,
                    "indexes": [entry.index for entry in entries],
                    "link_ids": [entry.link_id for entry in entries],
                    "steps": [entry.step for entry in entries],
                    "entry_ids": [entry.entry_id for entry in entries],
                    "leaves": [entry.leaf for entry in entries],
                    "leaf_hashes": [entry.leaf_hash for entry in entries],
                    "salts": [entry.salt for entry in entries],
                    "bodies": [entry.body for entry in entries],
                    "tile_levels": [level for level, _, _ in tiles],
                    "tile_numbers": [number for _, number, _ in tiles],
                    "tiles": [hashes for _, _, hashes in tiles],
                },
            )
            return bool(moved.scalar_one())

    async def entries_of_links(self, link_ids: list[str]) -> list[StoredEntry]:
        """Every entry of the links, in the order of the log."""
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text(f"""
                    SELECT {_ENTRY_COLUMNS} FROM evidence.entries e LEFT JOIN evidence.bodies b USING (index)
                    WHERE e.link_id = ANY (CAST(:link_ids AS text[])) ORDER BY e.index
                """),  # noqa: S608 - the columns are a constant
                {"link_ids": link_ids},
            )
            return [_entry(row) for row in rows]

    async def body(self, index: int) -> bytes | None:
        """One body; None once erased."""
        async with self._database.statement() as connection:
            row = await connection.execute(text("SELECT body FROM evidence.bodies WHERE index = :i"), {"i": index})
            return row.scalar_one_or_none()

    async def leaves(self, first: int, count: int) -> list[tuple[bytes, bytes]]:
        """(leaf, leaf_hash) of `count` entries from index `first`, fewer at the log's end."""
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text("""
                    SELECT leaf, leaf_hash FROM evidence.entries WHERE index >= :first AND index < :end ORDER BY index
                """),
                {"first": first, "end": first + count},
            )
            return [(row.leaf, row.leaf_hash) for row in rows]

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


def _entry(row: Row[Any]) -> StoredEntry:
    return StoredEntry(*tuple(row))
