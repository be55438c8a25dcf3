"""Transactions, of one statement or several, begun anew when PostgreSQL says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.db import Database

T = TypeVar("T")

# Deadlock and serialization failure: another call took the same rows in another order.
_RESTART_STATES = ("40P01", "40001")
_RESTARTS = 3


async def in_statement(database: Database, statement: str, *arguments: object) -> list[Any]:
    """All rows of the driver's own statement, which is one transaction. Raises like `in_transaction`."""
    for restart in range(_RESTARTS + 1):
        try:
            return await database.rows(statement, *arguments)
        except asyncpg.PostgresError as error:
            if restart == _RESTARTS or error.sqlstate not in _RESTART_STATES:
                raise
    raise AssertionError("the loop returns or raises")


async def in_transaction(database: Database, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """What `work` answers, committed.

    Raises:
        WalletError: DATABASE_UNAVAILABLE; whether a commit that failed so took effect is unknown.
    """
    for restart in range(_RESTARTS + 1):
        try:
            async with database.begin() as connection:
                return await work(connection)
        except DBAPIError as error:
            if restart == _RESTARTS or getattr(error.orig, "sqlstate", None) not in _RESTART_STATES:
                raise
    raise AssertionError("the loop returns or raises")


async def rows(connection: AsyncConnection, statement: str, *arguments: object) -> list[Any]:
    """All rows of the driver's own statement ($1, $2 …)."""
    return list((await connection.exec_driver_sql(statement, arguments)).all())
