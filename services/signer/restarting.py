"""A transaction of several statements, begun anew when PostgreSQL says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.db import Database

T = TypeVar("T")

# Deadlock and serialization failure: another call took the same rows in another order.
RESTART_STATES = ("40P01", "40001")
RESTARTS = 3


async def in_transaction(database: Database, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """What `work` answers, committed.

    Raises:
        WalletError: DATABASE_UNAVAILABLE; whether a commit that failed so took effect is unknown.
    """
    for restart in range(RESTARTS + 1):
        try:
            async with database.begin() as connection:
                return await work(connection)
        except DBAPIError as error:
            if restart == RESTARTS or getattr(error.orig, "sqlstate", None) not in RESTART_STATES:
                raise
    raise AssertionError("the loop returns or raises")


async def rows(connection: AsyncConnection, statement: str, *arguments: object) -> list[Any]:
    """All rows of the driver's own statement ($1, $2 …)."""
    return list((await connection.exec_driver_sql(statement, arguments)).all())
