"""Which service calls which, from the spans that are stored: a span whose parent is a span of another service."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import text

from services.runtime.db import Database

# A parent starts before its child; so long before it at most is it looked for.
_LONGEST_PARENT_NS = 24 * 3_600 * 10**9

# Both sides once, hashed: a look-up for each of a million spans would take minutes. Spans of two days of receipt, and
# two versions of a span, are one call.
_SELECT = text(
    """
    SELECT parent.service AS parent, child.service AS child,
           count(DISTINCT (child.trace_id, child.span_id)) AS calls
    FROM tracestore.spans AS child
    JOIN tracestore.spans AS parent ON parent.trace_id = child.trace_id AND parent.span_id = child.parent_span_id
    WHERE child.start_ns BETWEEN :start_ns AND :end_ns AND octet_length(child.parent_span_id) = 8
      AND parent.start_ns BETWEEN :parent_start_ns AND :end_ns
      AND child.service <> parent.service AND child.service <> '' AND parent.service <> ''
    GROUP BY 1, 2 ORDER BY 1, 2
    """
)


class Dependency(NamedTuple):
    parent: str
    child: str
    calls: int


async def dependencies(database: Database, start_ns: int, end_ns: int) -> list[Dependency]:
    """Of calls that started between the two.

    Raises:
        WalletError: DATABASE_UNAVAILABLE.
    """
    arguments = {"start_ns": start_ns, "end_ns": end_ns, "parent_start_ns": max(start_ns - _LONGEST_PARENT_NS, 0)}
    async with database.begin() as connection:
        for setting in ("enable_hashjoin = on", "enable_nestloop = off"):
            await connection.execute(text(f"SET LOCAL {setting}"))
        rows = await connection.execute(_SELECT, arguments)
        return [Dependency(row.parent, row.child, row.calls) for row in rows]
