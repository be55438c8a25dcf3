"""PostgreSQL by SQLAlchemy 2 Core over asyncpg: one engine a process, at most five connections, errors by meaning."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import URL, event, make_url
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

from services.core.errors import Reason, WalletError
from services.runtime.settings import DatabaseSettings, read_secret

# SQLSTATE classes that mean "not now": connection exceptions, insufficient resources, operator intervention.
_UNAVAILABLE_CLASSES = ("08", "53", "57")

# Services find rows by their keys. PostgreSQL keeps the plan of a prepared statement, and one made while a table was
# empty would read all of it ever after: so it is told to prefer the keys' indexes. Where there is none, only the
# estimated cost changes, and that must not bring up the compiler.
_PLANNING = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off"}


def database_url(settings: DatabaseSettings, password_file: Path | None, role: str | None = None) -> URL:
    """The URL with its password filled in from the file; `role` replaces the user."""
    url = make_url(settings.database_url)
    password = read_secret(password_file) if password_file is not None else None
    return url.set(username=role or url.username, password=password)


class Database:
    """Transactions of one service. Every failure to reach PostgreSQL is DATABASE_UNAVAILABLE."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self.engine: AsyncEngine = create_async_engine(
            database_url(settings, settings.database_password_file),
            pool_size=settings.database_pool_size,
            max_overflow=0,
            pool_timeout=settings.database_timeout_s,
            pool_pre_ping=False,
            connect_args={"timeout": 5.0, "command_timeout": 60.0, "server_settings": _PLANNING},
        )
        event.listen(self.engine.sync_engine, "checkout", _replace_closed)
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    async def close(self) -> None:
        await self.engine.dispose()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Raises:
            WalletError: DATABASE_UNAVAILABLE. Whether a commit that failed so took effect is unknown.
        """
        with _errors_by_meaning():
            async with self.engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """Statements that are a transaction each: no BEGIN and COMMIT on the wire. Raises like `begin`."""
        with _errors_by_meaning():
            async with self._autocommit.connect() as connection:
                yield connection

    async def value(self, statement: str, *arguments: object) -> Any:
        """The first value of the driver's own statement ($1, $2 …), a transaction by itself. Raises like `begin`.

        For what is done again and again: on a small statement SQLAlchemy spends ten times what the driver does.
        """
        async with self._driver() as driver:
            return await driver.fetchval(statement, *arguments)

    async def rows(self, statement: str, *arguments: object) -> list[Any]:
        """All rows of the driver's own statement, like `value`."""
        async with self._driver() as driver:
            return list(await driver.fetch(statement, *arguments))

    @asynccontextmanager
    async def _driver(self) -> AsyncIterator[Any]:
        with _errors_by_meaning():
            connection = await self.engine.raw_connection()
            try:
                yield connection.driver_connection
            except asyncpg.PostgresError:
                raise
            except BaseException:
                # Given up half way, by a time limit for one: what the connection is doing is not known.
                await greenlet_spawn(connection.invalidate)
                raise
            finally:
                await greenlet_spawn(connection.close)


def _replace_closed(connection: Any, *_: object) -> None:
    # A connection that the server ended while it was idle is replaced, without the round trip of a ping.
    if connection.driver_connection.is_closed():
        raise DisconnectionError


@contextmanager
def _errors_by_meaning() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, asyncpg.InterfaceError, PoolTimeoutError, OSError, TimeoutError) as error:
        raise _unavailable() from error
    except (asyncpg.PostgresError, AsyncAdapt_asyncpg_dbapi.Error) as error:
        # The second is how the dialect reports a connection that cannot be made.
        if (getattr(error, "sqlstate", None) or "")[:2] in _UNAVAILABLE_CLASSES:
            raise _unavailable() from error
        raise
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or ""
        if error.connection_invalidated or state[:2] in _UNAVAILABLE_CLASSES:
            raise _unavailable() from error
        raise


def _unavailable() -> WalletError:
    return WalletError(Reason.DATABASE_UNAVAILABLE, Reason.DATABASE_UNAVAILABLE.meaning)


def constraint_name(error: DBAPIError) -> str | None:
    """The constraint that an integrity error broke, so that a store can name the meaning."""
    cause = getattr(error.orig, "__cause__", None)
    name = getattr(cause, "constraint_name", None)
    return str(name) if name is not None else None
