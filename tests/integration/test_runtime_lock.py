"""`LeaseLock` on a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from services.runtime import lock as lock_module
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


async def test_callers_of_one_process_take_turns_without_redis(tmp_path: Path) -> None:
    client = Redis(unix_socket_path=str(tmp_path / "nobody"))
    lock, inside, most = LeaseLock(client, wait_s=1), 0, 0

    async def contend() -> None:
        nonlocal inside, most
        async with lock.hold("a") as held:
            assert not held
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(contend() for _ in range(20)))
    assert most == 1
    await client.aclose()


async def test_redis_gone_means_going_on_without(tmp_path: Path) -> None:
    client = Redis(unix_socket_path=str(tmp_path / "nobody"))
    started = time.monotonic()
    async with LeaseLock(client, wait_s=1).hold("a") as held:
        assert not held
    # A refused connection is an answer: nothing is waited for.
    assert time.monotonic() - started < 0.5
    await client.aclose()


class HangingServer:
    """Accepts and, once told to, answers nothing; until then it passes everything on to the real Redis."""

    def __init__(self, path: Path, redis_url: str) -> None:
        self.path = path
        self._target = urlsplit(redis_url)
        self._hangs = False
        self._tasks: set[asyncio.Task[None]] = set()

    def hang(self) -> None:
        self._hangs = True

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._accept, self.path)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        pipes = [self._pipe(reader, upstream_writer), self._pipe(upstream_reader, writer)]
        self._tasks |= {asyncio.ensure_future(pipe) for pipe in pipes}

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not self._hangs:
                writer.write(data)
        writer.close()


@pytest.fixture
async def hanging(tmp_path: Path, redis_url: str) -> AsyncIterator[tuple[HangingServer, Redis]]:
    """A server that is well for now, and a client of it that has no time limit of its own."""
    server = HangingServer(tmp_path / "redis", redis_url)
    listening = await server.serve()
    password = urlsplit(redis_url).password
    client = Redis(unix_socket_path=str(server.path), password=password, socket_timeout=None)
    yield server, client
    await client.aclose()
    listening.close()


async def test_redis_that_does_not_answer_is_not_waited_for_longer_than_asked(
    hanging: tuple[HangingServer, Redis],
) -> None:
    server, client = hanging
    server.hang()
    lock = LeaseLock(client, wait_s=0.3)
    started = time.monotonic()
    async with lock.hold("a") as held:
        assert not held
    assert 0.3 <= time.monotonic() - started < 2
    # Nor by everyone in turn.
    started = time.monotonic()
    for _ in range(20):
        async with lock.hold("a") as held:
            assert not held
    assert time.monotonic() - started < 0.3
    assert not await lock.available()


async def test_redis_that_stops_answering_while_the_lease_is_held_does_not_keep_the_holder(
    hanging: tuple[HangingServer, Redis],
) -> None:
    server, client = hanging
    async with LeaseLock(client, wait_s=5).hold("a") as held:
        assert held
        server.hang()
        started = time.monotonic()
    assert time.monotonic() - started < 2


async def test_redis_that_is_back_is_used_again(
    tmp_path: Path, redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "_REST_S", 0.2)
    password = urlsplit(redis_url).password
    client = Redis(unix_socket_path=str(tmp_path / "redis"), password=password)
    lock = LeaseLock(client, wait_s=1)
    async with lock.hold("a") as held:
        assert not held
    listening = await HangingServer(tmp_path / "redis", redis_url).serve()
    async with asyncio.timeout(5), poll_until_held(lock) as held:
        assert held
        assert await redis.exists("a") == 1
    await client.aclose()
    listening.close()


@asynccontextmanager
async def poll_until_held(lock: LeaseLock) -> AsyncIterator[bool]:
    while True:
        async with lock.hold("a") as held:
            if held:
                yield True
                return
        await asyncio.sleep(0.02)


async def test_a_server_that_became_a_replica_is_gone_without(redis_url: str, redis: Redis) -> None:
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        async with LeaseLock(Redis.from_url(redis_url), wait_s=1).hold("a") as held:
            assert not held
    finally:
        await redis.execute_command("REPLICAOF", "NO", "ONE")
    async with LeaseLock(redis, wait_s=1).hold("a") as held:
        assert held
