"""`LeaseLock` on a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.runtime.lock import LeaseLock


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


async def test_one_holder_at_a_time_and_all_get_their_turn(redis: Redis) -> None:
    lock, inside, most, turns = LeaseLock(redis), 0, 0, 0

    async def contend() -> None:
        nonlocal inside, most, turns
        async with lock.hold("nonce:eip155:1:a") as held:
            assert held
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            turns += 1

    await asyncio.gather(*(contend() for _ in range(20)))
    assert (most, turns) == (1, 20)
    assert await redis.keys() == []


async def test_names_do_not_contend(redis: Redis) -> None:
    lock = LeaseLock(redis, wait_s=0.2)
    async with lock.hold("a") as first, lock.hold("b") as second:
        assert (first, second) == (True, True)


async def test_taken_lease_is_not_given_and_the_caller_goes_on_without(redis: Redis) -> None:
    async with LeaseLock(redis).hold("a") as first:
        started = time.monotonic()
        async with LeaseLock(redis, wait_s=0.2).hold("a") as second:
            assert (first, second) == (True, False)
            assert 0.2 <= time.monotonic() - started < 2
        # Whoever never held it does not release it.
        assert await redis.exists("a") == 1


async def test_dead_holders_lease_ends_by_itself(redis: Redis) -> None:
    await redis.set("a", "a process that was killed", px=300)
    async with LeaseLock(redis, wait_s=3).hold("a") as held:
        assert held


async def test_late_holder_does_not_release_its_successors_lease(redis: Redis) -> None:
    async with LeaseLock(redis, lease_s=0.05).hold("a") as held:
        assert held
        async with LeaseLock(redis, lease_s=30).hold("a") as successor:
            assert successor
            owner = await redis.get("a")
            async with LeaseLock(redis, wait_s=0.1).hold("a") as third:
                assert not third
            assert await redis.get("a") == owner
            late = LeaseLock(redis)
            await late._release("a", "another owner")
            assert await redis.get("a") == owner
    assert await redis.exists("a") == 0


async def test_lease_is_released_when_the_work_fails(redis: Redis) -> None:
    with pytest.raises(ValueError, match="work"):
        async with LeaseLock(redis).hold("a"):
            raise ValueError("work")
    assert await redis.exists("a") == 0


async def test_redis_gone_means_going_on_without(tmp_path: Path) -> None:
    client = Redis(unix_socket_path=str(tmp_path / "nobody"))
    started = time.monotonic()
    async with LeaseLock(client, wait_s=1).hold("a") as held:
        assert not held
    # A refused connection is an answer: nothing is waited for.
    assert time.monotonic() - started < 0.5
    await client.aclose()


async def test_redis_that_does_not_answer_is_not_waited_for_longer_than_asked(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(silent, tmp_path / "silent")
    client = Redis(unix_socket_path=str(tmp_path / "silent"))
    started = time.monotonic()
    async with LeaseLock(client, wait_s=0.3).hold("a") as held:
        assert not held
    assert time.monotonic() - started < 2
    await client.aclose()
    server.close()
