"""`Database` against a PostgreSQL that goes away and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import asyncpg
import pytest
from sqlalchemy import text

from services.core.errors import Reason, WalletError
from services.runtime.db import Database
from services.runtime.migrations import migrate
from tests.integration.dependencies import OwnPostgres, ServiceDatabase


@pytest.fixture(scope="module")
def stoppable(own_postgres: Callable[[], OwnPostgres]) -> Iterator[OwnPostgres]:
    with own_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def migrated(stoppable: OwnPostgres) -> ServiceDatabase:
    return stoppable.migrated("tracestore")


def impatient(database: ServiceDatabase) -> Database:
    """As the service opens it, with as little patience as a test has."""
    return Database(database.settings.model_copy(update={"database_timeout_s": 2.0}))


@pytest.fixture
async def database(migrated: ServiceDatabase) -> AsyncIterator[Database]:
    database = impatient(migrated)
    yield database
    await database.close()


async def ask(database: Database) -> int:
    async with database.begin() as connection:
        return int((await connection.execute(text("SELECT 1"))).scalar_one())


async def test_stopped_server_is_unavailable_and_its_return_is_noticed_at_once(
    stoppable: OwnPostgres, database: Database
) -> None:
    assert await asyncio.gather(*(ask(database) for _ in range(5))) == [1] * 5
    await asyncio.to_thread(stoppable.stop)
    for _ in range(6):
        with pytest.raises(WalletError) as raised:
            await ask(database)
        assert raised.value.reason is Reason.DATABASE_UNAVAILABLE
    await asyncio.to_thread(stoppable.start)
    assert await asyncio.gather(*(ask(database) for _ in range(5))) == [1] * 5


async def test_restart_between_two_calls_is_not_noticed(stoppable: OwnPostgres, database: Database) -> None:
    assert await asyncio.gather(*(ask(database) for _ in range(5))) == [1] * 5
    await asyncio.to_thread(stoppable.stop)
    await asyncio.to_thread(stoppable.start)
    assert await asyncio.gather(*(ask(database) for _ in range(5))) == [1] * 5


async def test_server_that_stops_within_a_transaction_is_unavailable(
    stoppable: OwnPostgres, database: Database
) -> None:
    async def interrupted() -> None:
        async with database.begin() as connection:
            await connection.execute(text("SELECT 1"))
            await asyncio.to_thread(stoppable.stop)
            await connection.execute(text("SELECT 1"))

    with pytest.raises(WalletError) as raised:
        await interrupted()
    assert raised.value.reason is Reason.DATABASE_UNAVAILABLE
    await asyncio.to_thread(stoppable.start)


async def test_server_that_is_starting_is_unavailable(stoppable: OwnPostgres, migrated: ServiceDatabase) -> None:
    # 57P03 while it starts, 53300 when it is full: both mean "not now" to a new connection.
    stoppable.execute('ALTER ROLE "tracestore" CONNECTION LIMIT 0')
    database = impatient(migrated)
    with pytest.raises(WalletError) as raised:
        await ask(database)
    stoppable.execute('ALTER ROLE "tracestore" CONNECTION LIMIT -1')
    assert raised.value.reason is Reason.DATABASE_UNAVAILABLE
    assert await ask(database) == 1
    await database.close()


async def test_pool_of_five_that_stays_busy_is_unavailable(database: Database) -> None:
    release = asyncio.Event()

    async def occupy(started: asyncio.Event) -> None:
        async with database.begin() as connection:
            await connection.execute(text("SELECT 1"))
            started.set()
            await release.wait()

    events = [asyncio.Event() for _ in range(5)]
    busy = [asyncio.create_task(occupy(event)) for event in events]
    await asyncio.gather(*(event.wait() for event in events))
    with pytest.raises(WalletError) as raised:
        await ask(database)
    release.set()
    await asyncio.gather(*busy)
    assert raised.value.reason is Reason.DATABASE_UNAVAILABLE
    assert await ask(database) == 1


async def test_statements_of_the_driver_and_transactions_share_five_connections(database: Database) -> None:
    async def backend() -> int:
        # All at once: each takes a connection of its own.
        return int(await database.value("SELECT pg_backend_pid() FROM pg_sleep(0.05)"))

    backends = await asyncio.gather(*(backend() for _ in range(12)))
    assert len(set(backends)) == 5
    # The five are idle now, and kept; five transactions at once get them all the same, among waiting statements.
    both = await asyncio.gather(*(ask(database) for _ in range(5)), *(backend() for _ in range(5)))
    assert both[:5] == [1] * 5
    assert set(both[5:]) <= set(backends)


async def test_a_kept_connection_that_the_server_ended_is_replaced_unnoticed(
    stoppable: OwnPostgres, database: Database
) -> None:
    await asyncio.gather(*(database.value("SELECT 1 FROM pg_sleep(0.05)") for _ in range(5)))
    await asyncio.to_thread(stoppable.stop)
    await asyncio.to_thread(stoppable.start)
    assert await asyncio.gather(*(database.value("SELECT 1") for _ in range(5))) == [1] * 5


async def test_a_statement_that_was_given_up_leaves_no_connection_behind_that_is_busy(database: Database) -> None:
    for _ in range(6):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(database.rows("SELECT pg_sleep(30)"), 0.05)
    assert await asyncio.gather(*(database.value("SELECT 1") for _ in range(5))) == [1] * 5


async def test_a_statement_that_the_server_refuses_is_an_error_of_its_own(database: Database) -> None:
    for _ in range(6):
        with pytest.raises(asyncpg.UndefinedTableError):
            await database.rows("SELECT 1 FROM nowhere")
    assert await database.value("SELECT 1") == 1
    assert await database.value("SELECT 1 WHERE false") is None


async def test_migrating_twice_and_at_once_changes_nothing(migrated: ServiceDatabase) -> None:
    await asyncio.gather(*(migrate("tracestore", migrated.owner_settings) for _ in range(3)))
