"""A part of a service that one replica serves at a time: its callers go there, and wait while it moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.core.errors import Reason, WalletError
from services.runtime.channel import PeerChannel
from services.runtime.server import GrpcServer
from services.runtime.settings import ServiceSettings
from tests.integration.test_runtime_rpc import CALL, Suite, echo_server, raw_channel, refusal_of
from tools.stack.authority import Authority

PART = "test.v1.Echo/one"


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    (tmp_path / "callers.yaml").write_text(yaml.safe_dump({"signer": ["gateway"]}))
    return Suite(tmp_path, Authority(tmp_path / "tls"))


def named(suite: Suite, name: bytes) -> GrpcServer:
    async def answer(request: bytes, context: Any) -> bytes:
        return name

    return echo_server(suite, answer)


def calls_to(suite: Suite, servers: tuple[GrpcServer, ...], part: str | None) -> PeerChannel:
    addresses = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    tls_dir = suite.authority.issue("gateway")
    return PeerChannel("signer", ServiceSettings(tls_dir=tls_dir, peers={"signer": f"ipv4:{addresses}"}), part)


async def until_answered(call: Callable[[], Any], wanted: bytes) -> float:
    """Seconds until `wanted` answers; the others may answer before."""
    began = time.monotonic()
    while await call() != wanted:
        assert time.monotonic() - began < 5
    return time.monotonic() - began


async def until_refused(call: Callable[[], Any]) -> None:
    for _ in range(500):
        try:
            await call()
        except WalletError:
            return
    raise AssertionError("nothing was refused")


async def test_calls_go_to_the_replica_that_serves_the_part_and_follow_it_at_once(suite: Suite) -> None:
    async with named(suite, b"a") as a, named(suite, b"b") as b:
        peer, any_replica = calls_to(suite, (a, b), PART), calls_to(suite, (a, b), None)
        everywhere, call = any_replica.unary_unary(CALL), peer.unary_unary(CALL)
        a.report(PART, serving=True)
        assert {await call(b"") for _ in range(30)} == {b"a"}
        # Who needs no part is answered by all.
        assert {await everywhere(b"") for _ in range(30)} == {b"a", b"b"}
        for old, new, name in ((a, b, b"b"), (b, a, b"a")):
            old.report(PART, serving=False)
            new.report(PART, serving=True)
            assert await until_answered(lambda: call(b""), name) < 0.5
            assert {await call(b"") for _ in range(30)} == {name}
        await peer.close()
        await any_replica.close()


async def test_calls_wait_while_the_part_moves(suite: Suite) -> None:
    async with named(suite, b"a") as a, named(suite, b"b") as b:
        peer = calls_to(suite, (a, b), PART)
        call = peer.unary_unary(CALL)
        a.report(PART, serving=True)
        assert await call(b"") == b"a"
        a.report(PART, serving=False)
        # It is told by a stream; then no call goes there any more.
        await until_refused(lambda: call(b"", timeout=0.2))
        waiting = [asyncio.create_task(call(b"")) for _ in range(20)]
        await asyncio.sleep(1)
        assert not any(task.done() for task in waiting)
        b.report(PART, serving=True)
        began = time.monotonic()
        assert set(await asyncio.gather(*waiting)) == {b"b"}
        assert time.monotonic() - began < 0.5
        await peer.close()


async def test_without_a_replica_that_serves_the_part_a_call_fails_well_within_its_time(suite: Suite) -> None:
    async with named(suite, b"a") as a:
        peer = calls_to(suite, (a,), PART)
        for timeout_s, waited_s in ((1.0, 0.5), (10.0, 3.5)):
            began = time.monotonic()
            refused = await refusal_of(peer.unary_unary(CALL)(b"", timeout=timeout_s))
            assert refused.reason is Reason.SERVICE_UNAVAILABLE
            assert waited_s <= time.monotonic() - began < waited_s + 1
        await peer.close()


async def test_a_watched_server_stops_without_waiting_for_its_watchers(suite: Suite) -> None:
    async with named(suite, b"a") as a:
        a.report(PART, serving=True)
        channel = raw_channel(suite, a.port)
        told = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=PART))
        assert (await told.read()).status == health_pb2.HealthCheckResponse.SERVING
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert (await told.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await told.read() is grpc.aio.EOF
    await channel.close()
