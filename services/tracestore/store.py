"""What comes in, into the tables: spans, log records, and the heads (resource and scope) that they share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from itertools import islice

import asyncpg

from services.core.errors import Reason, WalletError
from services.runtime.db import Database
from services.tracestore.days import Days
from services.tracestore.logs import LogBatch, LogRow
from services.tracestore.spans import SpanBatch, SpanRow

_INSERT_HEADS = (
    "INSERT INTO tracestore.scopes (sha256, scope) SELECT * FROM unnest($1::bytea[], $2::bytea[])"
    " ON CONFLICT DO NOTHING"
)
_INSERT_OPERATIONS = (
    "INSERT INTO tracestore.operations (seen_on, service, name, kind)"
    " SELECT $1, * FROM unnest($2::text[], $3::text[], $4::smallint[]) ON CONFLICT DO NOTHING"
)
_INSERT_SPANS = (
    "INSERT INTO tracestore.spans (trace_id, start_ns, span_id, sha256, parent_span_id, duration_ns, service, name,"
    " kind, status, tokens, scope_sha256, span)"
    " SELECT trace_id, start_ns, span_id, sha256, parent_span_id, duration_ns, service, name, kind, status,"
    " tokens::integer[], scope_sha256, span FROM unnest($1::tracestore.incoming_span[]) ON CONFLICT DO NOTHING"
)
_INSERT_LOGS = (
    "INSERT INTO tracestore.logs (trace_id, time_ns, sha256, scope_sha256, span_id, severity, service, record)"
    " SELECT * FROM unnest($1::tracestore.incoming_log[]) ON CONFLICT DO NOTHING"
)
_MAX_KNOWN_HEADS = 10_000
# Of one service and of all, a day and process. The names of spans are whatever callers make them.
_MAX_OPERATIONS, _MAX_OPERATIONS_OF_ALL = 1_000, 20_000

Operation = tuple[str, str, int]


class Store:
    """Each insert is one statement. What a statement before it left behind without it, a head or the name of an
    operation, harms nobody. Rows go in sorted: two replicas that insert the same ones cannot wait for each other."""

    def __init__(self, database: Database, days: Days) -> None:
        self._database = database
        self._days = days
        # Known to be committed: a process names the same few in every export.
        self._known_heads: set[bytes] = set()
        self._operations = _KnownOperations()

    async def insert_spans(self, batches: Sequence[SpanBatch]) -> None:
        """Store all batches at once; what is stored already stays as it is.

        Raises:
            WalletError: DATABASE_UNAVAILABLE.
        """
        rows = sorted(row for batch in batches for row in batch.rows)
        if not rows:
            return
        await self._insert_heads({sha256: head for batch in batches for sha256, head in batch.heads.items()})
        await self._insert_operations({(row.service, row.name, row.kind) for row in rows})
        await self._insert(_INSERT_SPANS, rows)

    async def insert_logs(self, batches: Sequence[LogBatch]) -> None:
        """Like `insert_spans`."""
        rows = sorted(row for batch in batches for row in batch.rows)
        if not rows:
            return
        await self._insert_heads({sha256: head for batch in batches for sha256, head in batch.heads.items()})
        await self._insert(_INSERT_LOGS, rows)

    async def _insert(self, statement: str, rows: Sequence[SpanRow] | Sequence[LogRow]) -> None:
        try:
            await self._database.rows(statement, rows)
        except asyncpg.CheckViolationError:
            # No partition for today: nobody made it in time.
            await self._days.make()
            try:
                await self._database.rows(statement, rows)
            except asyncpg.CheckViolationError as error:
                raise WalletError(
                    Reason.DATABASE_UNAVAILABLE, "the day of receipt has no place, or is sealed"
                ) from error

    async def _insert_heads(self, heads: dict[bytes, bytes]) -> None:
        new = sorted(item for item in heads.items() if item[0] not in self._known_heads)
        if not new:
            return
        await self._database.rows(_INSERT_HEADS, [sha256 for sha256, _ in new], [head for _, head in new])
        if len(self._known_heads) + len(new) > _MAX_KNOWN_HEADS:
            self._known_heads.clear()
        self._known_heads.update(sha256 for sha256, _ in new)

    async def _insert_operations(self, operations: set[Operation]) -> None:
        today = datetime.now(UTC).date()
        new = sorted(self._operations.new(today, operations))
        if not new:
            return
        await self._database.rows(_INSERT_OPERATIONS, today, *map(list, zip(*new, strict=True)))
        self._operations.add(new)


class _KnownOperations:
    """Those of one day, as many as are listed."""

    def __init__(self) -> None:
        self._day: date | None = None
        self._known: set[Operation] = set()
        self._of_service: dict[str, int] = {}

    def new(self, day: date, operations: set[Operation]) -> list[Operation]:
        if day != self._day:
            self._day = day
            self._known.clear()
            self._of_service.clear()
        new = []
        of_service = dict(self._of_service)
        for one in islice(operations - self._known, _MAX_OPERATIONS_OF_ALL - len(self._known)):
            count = of_service.get(one[0], 0)
            if count < _MAX_OPERATIONS:
                of_service[one[0]] = count + 1
                new.append(one)
        return new

    def add(self, operations: Sequence[Operation]) -> None:
        self._known.update(operations)
        for service, _, _ in operations:
            self._of_service[service] = self._of_service.get(service, 0) + 1
