"""`Database` against a PostgreSQL that goes away and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import text

from services.core.errors import Reason, WalletError
from services.runtime.db import Database
from services.runtime.migrations import migrate
from tests.integration.embedded import RunningPostgres, database_settings


@pytest.fixture(scope="module")
def postgres() -> Iterator[RunningPostgres]:
    with RunningPostgres() as server:
        yield server


@pytest.fixture(scope="module")
def environment(postgres: RunningPostgres) -> dict[str, str]:
    return postgres.prepare("tracestore")


@pytest.fixture
async def database(environment: dict[str, str]) -> AsyncIterator[Database]:
    database = Database(database_settings(environment))
    yield database
    await database.close()


async def ask(database: Database) -> int:
    async with database.begin() as connection:
        return int((await connection.execute(text("SELECT 1"))).scalar_one())


async def test_stopped_server_is_unavailable_and_its_return_is_noticed_at_once(
    postgres: RunningPostgres, database: Database
) -> None:
    assert await asyncio.gather(*(ask(database) for _ in range(5))) == [1] * 5
    await asyncio.to_thread(postgres.stop)
    for _ in range(6):
        with pytest.raises(WalletError) as raised:
            await ask(database)
        assert raised.value.reason is Reason.DATABASE_UNAVAILABLE
    await asyncio.to_thread(postgres.start)
    assert await asyncio.gather(*(ask(database) for _ in range(5))) == [1] * 5


async def test_restart_between_two_calls_is_not_noticed(postgres: RunningPostgres, database: Database) -> None:
    assert await asyncio.gather(*(ask(database) for _ in range(5))) == [1] * 5
    await asyncio.to_thread(postgres.stop)
    await asyncio.to_thread(postgres.start)
    assert await asyncio.gather(*(ask(database) for _ in range(5))) == [1] * 5


async def test_server_that_stops_within_a_transaction_is_unavailable(
    postgres: RunningPostgres, database: Database
) -> None:
    async def interrupted() -> None:
        async with database.begin() as connection:
            await connection.execute(text("SELECT 1"))
            await asyncio.to_thread(postgres.stop)
            await connection.execute(text("SELECT 1"))

    with pytest.raises(WalletError) as raised:
        await interrupted()
    assert raised.value.reason is Reason.DATABASE_UNAVAILABLE
    await asyncio.to_thread(postgres.start)


async def test_server_that_is_starting_is_unavailable(postgres: RunningPostgres, environment: dict[str, str]) -> None:
    # 57P03 while it starts, 53300 when it is full: both mean "not now" to a new connection.
    postgres.execute('ALTER ROLE "tracestore" CONNECTION LIMIT 0')
    database = Database(database_settings(environment))
    with pytest.raises(WalletError) as raised:
        await ask(database)
    postgres.execute('ALTER ROLE "tracestore" CONNECTION LIMIT -1')
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


async def test_migrating_twice_and_at_once_changes_nothing(environment: dict[str, str]) -> None:
    settings = database_settings(environment)
    await asyncio.gather(*(migrate("tracestore", settings) for _ in range(3)))
