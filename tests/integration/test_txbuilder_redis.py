"""Redis is speed: gone, hanging, flushed, failed over or forgetful, the row lock goes on allocating, within 5 s."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from redis.asyncio import Redis

from services.core.errors import Reason, WalletError
from services.runtime.lock import LeaseLock
from services.txbuilder import building
from tests.integration.dependencies import Dependencies, ServiceDatabase
from tests.integration.paused_builder import LEASE_S
from tests.integration.txbuilder_bench import Bench, Gate, built, draft, running_bench
from tools.stack.redis_server import EmbeddedRedis

# What the issue of a Redis that is gone may cost an allocation.
LIMIT_S = 5.0


class OwnRedis:
    """A server of a test's own, to be killed, frozen and replaced by an empty one at the same address."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        port = dependencies.ports.free()
        directory = dependencies.directory / f"redis-{port}"
        embedded = EmbeddedRedis(directory, directory.with_suffix(".log"), port)
        self._spec = embedded.spec.named(f"redis-{port}")
        self.url = embedded.url

    def start(self) -> None:
        self._dependencies.launch(self._spec)

    def kill(self) -> None:
        self._dependencies.end(self._spec.name, signal.SIGKILL)

    @contextmanager
    def frozen(self, pid: int) -> Iterator[None]:
        """Its port accepts, and nothing is answered."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def own_redis(dependencies: Dependencies) -> Iterator[OwnRedis]:
    server = OwnRedis(dependencies)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def database(service_database: Callable[[str], ServiceDatabase]) -> ServiceDatabase:
    return service_database("txbuilder")


@pytest.fixture
async def bench(database: ServiceDatabase, own_redis: OwnRedis, anvil: str) -> AsyncIterator[Bench]:
    async with running_bench(database.settings, own_redis.url, anvil) as running:
        yield running


@pytest.fixture
def allocations_without_lock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """What the metric counts."""
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("test")
    monkeypatch.setattr(building, "_without_lock", meter.create_counter("wallet.nonce.allocations_without_lock"))

    def count() -> int:
        data: Any = reader.get_metrics_data()
        points = [
            point
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        ]
        return sum(int(point.value) for point in points)

    return count


def as_wired(redis_url: str) -> tuple[Redis, LeaseLock]:
    """The lock of the service, with its default settings."""
    client = Redis.from_url(redis_url, socket_timeout=1.0, socket_connect_timeout=1.0)
    return client, LeaseLock(client, 5.0, 2.0)


async def allocate(bench: Bench, lock: LeaseLock, *transfer_ids: str) -> list[int]:
    """Each in a call of its own, all at once, within the limit; their nonces in order."""
    builder = bench.builder_with(lock)
    async with asyncio.timeout(LIMIT_S):
        outcomes = await asyncio.gather(*(builder.build([draft(one)]) for one in transfer_ids))
    return sorted(one.nonce for outcome in outcomes for one in built(outcome))


async def test_a_server_that_accepts_and_never_answers(
    bench: Bench, allocations_without_lock: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    silenced: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silenced.append(writer)
        await reader.read()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    client, lock = as_wired(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
    with caplog.at_level(logging.WARNING, "services.txbuilder.building"):
        assert await allocate(bench, lock, *(f"t-{number}" for number in range(8))) == list(range(8))
    assert allocations_without_lock() == 8
    assert "the nonce lock cannot be had" in caplog.text
    assert silenced
    started = time.monotonic()
    assert await allocate(bench, lock, "t-8") == [8]
    # It is not waited for by every call.
    assert time.monotonic() - started < 2.0
    await client.aclose()
    for writer in silenced:
        writer.close()
    server.close()


async def test_of_two_processes_without_redis_the_first_to_commit_is_not_stopped_by_the_other(bench: Bench) -> None:
    gates = [Gate(bench.nodes), Gate(bench.nodes)]
    building: list[asyncio.Task[Any]] = []
    for number, gate in enumerate(gates):
        _, lock = as_wired("redis://127.0.0.1:1/0")
        building.append(asyncio.create_task(bench.builder_with(lock, gate).build([draft(f"t-{number}")])))
        await gate.reached.wait()
    gates[0].opened.set()
    assert built(await building[0])[0].nonce == 0
    gates[1].opened.set()
    with pytest.raises(WalletError) as refused:
        await building[1]
    assert refused.value.reason is Reason.LEASE_LOST


async def test_a_server_that_is_killed_and_comes_back_empty(
    bench: Bench, own_redis: OwnRedis, allocations_without_lock: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runtime.lock._REST_S", 0.0)
    client, lock = as_wired(own_redis.url)
    assert await allocate(bench, lock, "t-0") == [0]
    own_redis.kill()
    assert await allocate(bench, lock, "t-1", "t-2") == [1, 2]
    assert allocations_without_lock() == 2
    own_redis.start()
    assert await allocate(bench, lock, "t-3") == [3]
    assert allocations_without_lock() == 2
    await client.aclose()


async def test_a_server_that_freezes_while_the_lease_is_held(
    bench: Bench, own_redis: OwnRedis, allocations_without_lock: Callable[[], int]
) -> None:
    client, lock = as_wired(own_redis.url)
    pid = (await client.info("server"))["process_id"]
    gate = Gate(bench.nodes)
    first = asyncio.create_task(bench.builder_with(lock, gate).build([draft("t-0")]))
    await gate.reached.wait()
    with own_redis.frozen(pid):
        gate.opened.set()
        async with asyncio.timeout(LIMIT_S):
            assert built(await first)[0].nonce == 0
        assert await allocate(bench, lock, "t-1", "t-2") == [1, 2]
    assert allocations_without_lock() == 2
    await client.aclose()


async def forgotten_lease(bench: Bench, url: str, forget: Callable[[Redis], Any]) -> None:
    """Two processes that both hold the lock, since Redis forgot the first one's lease: the first can write nothing."""
    (client, lock), (other_client, other_lock) = as_wired(url), as_wired(url)
    gate = Gate(bench.nodes)
    first = asyncio.create_task(bench.builder_with(lock, gate).build([draft("t-0")]))
    await gate.reached.wait()
    await forget(client)
    assert await allocate(bench, other_lock, "t-1") == [0]
    gate.opened.set()
    with pytest.raises(WalletError) as refused:
        await first
    assert refused.value.reason is Reason.LEASE_LOST
    # Its caller starts the step again.
    assert await allocate(bench, lock, "t-0") == [1]
    await client.aclose()
    await other_client.aclose()


async def test_flushall_under_a_holder_changes_nothing(
    bench: Bench, own_redis: OwnRedis, allocations_without_lock: Callable[[], int]
) -> None:
    async def flush(client: Redis) -> None:
        assert await client.keys() != []
        await client.flushall()

    await forgotten_lease(bench, own_redis.url, flush)
    assert allocations_without_lock() == 0


async def test_a_fail_over_that_forgets_the_lease_changes_nothing(bench: Bench, own_redis: OwnRedis) -> None:
    async def fail_over(_: Redis) -> None:
        await asyncio.to_thread(own_redis.kill)
        await asyncio.to_thread(own_redis.start)

    await forgotten_lease(bench, own_redis.url, fail_over)


async def test_a_holder_that_is_stopped_past_its_lease_can_write_nothing(
    bench: Bench, own_redis: OwnRedis, database: ServiceDatabase, anvil: str, tmp_path: Path
) -> None:
    redis_file = tmp_path / "redis.url"
    redis_file.write_text(own_redis.url)
    arguments = ["t-paused", anvil, str(redis_file), database.url, str(database.roles.password_file)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.paused_builder", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    client, lock = as_wired(own_redis.url)
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"gate\n"
            assert len(await client.keys()) == 1
            process.send_signal(signal.SIGSTOP)
            process.stdin.write(b"go on\n")
            started = time.monotonic()
            assert await allocate(bench, lock, "t-0") == [0]
            assert time.monotonic() - started < LEASE_S + 2.0
            process.send_signal(signal.SIGCONT)
            assert await process.stdout.readline() == b"LEASE_LOST\n"
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await client.aclose()
    assert "t-paused" not in await bench.store.find(["t-paused", "t-0"])
