"""The tables of tracestore: `spans`, and the `scopes` (resource and instrumentation scope) that they share."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from services.runtime.db import Database
from services.tracestore.spans import SpanBatch, SpanRow

_INSERT_SCOPES = text(
    "INSERT INTO tracestore.scopes (sha256, scope)"
    " SELECT * FROM unnest(CAST(:sha256 AS bytea[]), CAST(:scope AS bytea[])) ON CONFLICT DO NOTHING"
)
_INSERT_SPANS = text(
    "INSERT INTO tracestore.spans (trace_id, span_id, sha256, start_ns, service, name, scope_sha256, span)"
    " SELECT * FROM unnest(CAST(:trace_id AS bytea[]), CAST(:span_id AS bytea[]), CAST(:sha256 AS bytea[]),"
    " CAST(:start_ns AS bigint[]), CAST(:service AS text[]), CAST(:name AS text[]),"
    " CAST(:scope_sha256 AS bytea[]), CAST(:span AS bytea[])) ON CONFLICT DO NOTHING"
)
_SELECT_TRACE = text(
    "SELECT scope, span FROM tracestore.spans JOIN tracestore.scopes ON scopes.sha256 = spans.scope_sha256"
    " WHERE trace_id = :trace_id ORDER BY start_ns, span_id, spans.sha256"
)
_MAX_KNOWN_SCOPES = 10_000


class SpanStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        # Scopes known to be committed: a process names the same few in every export.
        self._known_scopes: set[bytes] = set()

    async def insert(self, batches: Sequence[SpanBatch]) -> None:
        """Store all batches in one transaction; what is stored already stays as it is.

        Raises:
            WalletError: DATABASE_UNAVAILABLE.
        """
        # In one order everywhere: two replicas that insert the same spans cannot wait for each other.
        rows = sorted(row for batch in batches for row in batch.rows)
        scopes = {sha256: scope for batch in batches for sha256, scope in batch.scopes.items()}
        new_scopes = sorted(item for item in scopes.items() if item[0] not in self._known_scopes)
        if not rows:
            return
        columns = dict(zip(SpanRow._fields, map(list, zip(*rows, strict=True)), strict=True))
        async with self._database.begin() as connection:
            if new_scopes:
                await connection.execute(
                    _INSERT_SCOPES,
                    {"sha256": [sha256 for sha256, _ in new_scopes], "scope": [scope for _, scope in new_scopes]},
                )
            await connection.execute(_INSERT_SPANS, columns)
        if len(self._known_scopes) + len(new_scopes) > _MAX_KNOWN_SCOPES:
            self._known_scopes.clear()
        self._known_scopes.update(sha256 for sha256, _ in new_scopes)

    async def trace(self, trace_id: bytes) -> list[tuple[bytes, bytes]]:
        """(scope, span) of every span of a trace, by start time; empty when there is none.

        Raises:
            WalletError: DATABASE_UNAVAILABLE.
        """
        async with self._database.begin() as connection:
            result = await connection.execute(_SELECT_TRACE, {"trace_id": trace_id})
            return [(row.scope, row.span) for row in result]
