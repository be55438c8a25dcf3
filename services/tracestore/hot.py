"""The hot tables read: a trace page by page, log records of a trace, and the names that were seen.

Pages are bounded by their bytes, so that what is read of a large trace never lies in memory as a whole. Rows that were
received on two days are there twice; their identity makes them neighbours, and the second is left out.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from typing import Any, NamedTuple

from sqlalchemy import text

from services.runtime.db import Database

_PAGE_ROWS, _PAGE_BYTES = 1_000, 2 * 1024 * 1024
# Of the process's connections, so that those who write always find one.
_READING = 3
_MAX_KNOWN_HEADS = 10_000

_TRACE_PAGE = """
SELECT start_ns, span_id, sha256, scope_sha256, span FROM (
    SELECT *, sum(octet_length(span)) OVER (ORDER BY start_ns, span_id, sha256 ROWS UNBOUNDED PRECEDING)
              - octet_length(span) AS bytes_before
    FROM (
        SELECT start_ns, span_id, sha256, scope_sha256, span FROM tracestore.spans
        WHERE trace_id = $1 AND (start_ns, span_id, sha256) > ($2, $3, $4)
        ORDER BY start_ns, span_id, sha256 LIMIT $5
    ) AS next
) AS page WHERE bytes_before < $6 ORDER BY start_ns, span_id, sha256
"""
_LOGS_PAGE = """
SELECT time_ns, sha256, scope_sha256, record FROM (
    SELECT *, sum(octet_length(record)) OVER (ORDER BY time_ns, sha256, scope_sha256 ROWS UNBOUNDED PRECEDING)
              - octet_length(record) AS bytes_before
    FROM (
        SELECT time_ns, sha256, scope_sha256, record FROM tracestore.logs
        WHERE trace_id = $1 AND (time_ns, sha256, scope_sha256) > ($2, $3, $4)
        ORDER BY time_ns, sha256, scope_sha256 LIMIT $5
    ) AS next
) AS page WHERE bytes_before < $6 ORDER BY time_ns, sha256, scope_sha256
"""
_HEADS = "SELECT sha256, scope FROM tracestore.scopes WHERE sha256 = ANY($1::bytea[])"
_SERVICES = "SELECT DISTINCT service FROM tracestore.operations WHERE service <> '' ORDER BY service"
_OPERATIONS = "SELECT DISTINCT name, kind FROM tracestore.operations WHERE service = $1 ORDER BY name, kind"


class StoredRecord(NamedTuple):
    """A span or a log record as it came, and the head (resource and scope) that it came under."""

    head: bytes
    content: bytes


class HotStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._reading = asyncio.Semaphore(_READING)
        self._heads: OrderedDict[bytes, bytes] = OrderedDict()

    async def rows(self, statement: str, *arguments: object) -> list[Any]:
        """Of a statement that reads.

        Raises:
            WalletError: DATABASE_UNAVAILABLE, here and below.
        """
        async with self._reading:
            return await self._database.rows(statement, *arguments)

    async def rows_in_order(self, statement: str, *arguments: object) -> list[Any]:
        """Of a statement that takes the first rows of an index's order. A planner without statistics of today's
        partition takes it for empty, and would rather sort all of it.
        """
        async with self._reading, self._database.begin() as connection:
            await connection.execute(text("SET LOCAL enable_bitmapscan = off"))
            driver: Any = (await connection.get_raw_connection()).driver_connection
            rows: list[Any] = await driver.fetch(statement, *arguments)
            return rows

    async def trace(self, trace_id: bytes) -> AsyncIterator[list[StoredRecord]]:
        """The spans of a trace by start time, each once, in pages of about 2 MiB; none when there is none."""
        async for page in self._pages(_TRACE_PAGE, trace_id, (-1, b"", b"")):
            yield page

    async def trace_logs(self, trace_id: bytes) -> AsyncIterator[list[StoredRecord]]:
        """The log records of a trace by their time, likewise."""
        async for page in self._pages(_LOGS_PAGE, trace_id, (-1, b"", b"")):
            yield page

    async def services(self) -> list[str]:
        return [row[0] for row in await self.rows(_SERVICES)]

    async def operations(self, service: str) -> list[tuple[str, int]]:
        """(name, kind) of the spans of a service."""
        return [(row[0], row[1]) for row in await self.rows(_OPERATIONS, service)]

    async def heads(self, wanted: Iterable[bytes]) -> dict[bytes, bytes]:
        """SHA-256 → head."""
        found = {sha256: self._heads[sha256] for sha256 in wanted if sha256 in self._heads}
        missing = sorted({sha256 for sha256 in wanted if sha256 not in found})
        if missing:
            read = {row[0]: row[1] for row in await self.rows(_HEADS, missing)}
            self._heads.update(read)
            found |= read
            while len(self._heads) > _MAX_KNOWN_HEADS:
                self._heads.popitem(last=False)
        return found

    async def _pages(
        self, statement: str, trace_id: bytes, start: tuple[int, bytes, bytes]
    ) -> AsyncIterator[list[StoredRecord]]:
        last = start
        while rows := await self.rows(statement, trace_id, *last, _PAGE_ROWS, _PAGE_BYTES):
            heads = await self.heads([row["scope_sha256"] for row in rows])
            page = []
            for row in rows:
                identity = row[0], row[1], row[2]
                if identity != last:
                    page.append(StoredRecord(heads[row["scope_sha256"]], row[-1]))
                    last = identity
            yield page
