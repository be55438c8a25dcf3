"""PostgreSQL by SQLAlchemy 2 Core over asyncpg: one engine a process, at most five connections, errors by meaning."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import URL, PoolProxiedConnection, event, make_url
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

from services.core.errors import Reason, WalletError
from services.runtime import fault_points
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
        # Taken from the pool for `rows` and not given back: the idle ones; and how many wait for one of the pool's.
        self._kept: list[PoolProxiedConnection] = []
        self._waiting = 0

    async def close(self) -> None:
        while self._kept:
            await self._return(self._kept.pop())
        await self.engine.dispose()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed when the block ends, rolled back when it raises.

        Raises:
            WalletError: DATABASE_UNAVAILABLE. Whether a commit that failed so took effect is unknown.
        """
        with _errors_by_meaning():
            async with self._pooled(self.engine.begin()) as connection:
                yield connection
                fault_points.before("commit")
            fault_points.after("commit")

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """Statements that are a transaction each: no BEGIN and COMMIT on the wire. Raises like `begin`."""
        with _errors_by_meaning():
            async with self._pooled(self._autocommit.connect()) as connection:
                fault_points.before("statement")
                yield connection
            fault_points.after("statement")

    async def value(self, statement: str, *arguments: object) -> Any:
        """The first value of `rows`; None without a row. Raises like `begin`."""
        rows = await self.rows(statement, *arguments)
        return rows[0][0] if rows else None

    async def rows(self, statement: str, *arguments: object) -> list[Any]:
        """All rows of the driver's own statement ($1, $2 …), a transaction by itself. Raises like `begin`.

        For what is done again and again: on a small statement SQLAlchemy spends ten times what the driver does, half of
        it for taking a connection from its pool. So one that was taken is kept, unless somebody waits for the pool.
        """
        try:
            connection = self._kept.pop() if self._kept else await self._take()
            driver: Any = connection.driver_connection
            if driver.is_closed():
                # The server ended it while it was idle: replaced, without the round trip of a ping.
                await self._return(connection)
                connection = await self._take()
                driver = connection.driver_connection
            fault_points.before("statement")
            try:
                rows: list[Any] = await driver.fetch(statement, *arguments)
            except asyncpg.PostgresError:
                await self._keep(connection)
                raise
            except BaseException:
                # Given up half way, by a time limit for one: what the connection is doing is not known.
                await greenlet_spawn(connection.invalidate)
                await self._return(connection)
                raise
            fault_points.after("statement")
            await self._keep(connection)
            return rows
        except Exception as error:
            with _errors_by_meaning():
                raise error

    @asynccontextmanager
    async def _pooled(self, asked: AbstractAsyncContextManager[AsyncConnection]) -> AsyncIterator[AsyncConnection]:
        """`asked` of the pool, which may have lent all connections to `rows`: those get back to it first."""
        async with AsyncExitStack() as stack:
            with self._waiting_for_the_pool():
                if self._kept:
                    await self._return(self._kept.pop())
                connection = await stack.enter_async_context(asked)
            yield connection

    async def _take(self) -> PoolProxiedConnection:
        with self._waiting_for_the_pool():
            return await self.engine.raw_connection()

    async def _keep(self, connection: PoolProxiedConnection) -> None:
        if self._waiting:
            await self._return(connection)
        else:
            self._kept.append(connection)

    async def _return(self, connection: PoolProxiedConnection) -> None:
        await greenlet_spawn(connection.close)

    @contextmanager
    def _waiting_for_the_pool(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1


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
    except asyncpg.InternalClientError as error:
        # The server has said that it ends the connection, and has not ended it yet.
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
