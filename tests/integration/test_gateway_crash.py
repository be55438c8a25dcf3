"""A gateway killed with SIGKILL between a peer's work and its own commit, and another that goes on from the rows."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.core.errors import Reason, WalletError
from tests.fakes.broadcaster import FINALIZED, INCLUDED, SAFE
from tests.integration.gateway_harness import Bench, Client, open_bench, plain


@pytest.fixture
async def bench(
    service_database: Callable[[str], Any], dev_ca: Callable[[str], Path], tmp_path: Path
) -> AsyncIterator[Bench]:
    async with open_bench(service_database("gateway"), dev_ca, tmp_path) as bench:
        yield bench


@asynccontextmanager
async def gateway_process(bench: Bench) -> AsyncIterator[tuple[Client, asyncio.subprocess.Process]]:
    """`python -m services.gateway` on a free port; killed at the end when it still runs."""
    environment = {"PATH": os.defpath, "OTEL_SDK_DISABLED": "true", **bench.environment}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.gateway"), env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = 0
        async with asyncio.timeout(30):
            while not port:
                line = await process.stdout.readline()
                assert line, "the gateway ended while it was started"
                port = json.loads(line).get("port", 0)
        async with bench.client(port) as client:
            yield client, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def expire_leases(bench: Bench) -> None:
    """As five seconds would."""
    bench.database.server.execute("UPDATE gateway.workers SET until = now()")


@pytest.mark.parametrize(
    ("peer", "method", "count"),
    [
        ("signer", "CheckPolicy", 1),
        ("txbuilder", "BuildTransaction", 1),
        ("signer", "SignTransaction", 1),
        ("broadcaster", "SubmitTransaction", 1),
        ("signer", "SignTransactions", 3),
    ],
)
async def test_a_killed_gateway_leaves_nothing_lost_and_nothing_twice(
    bench: Bench, peer: str, method: str, count: int
) -> None:
    script = getattr(bench.suite, peer).script
    worked = script.hold(method)
    async with gateway_process(bench) as (client, process):
        if count == 1:
            accepted = [(await client.post(plain(), key="k")).json()]
        else:
            accepted = (await client.post_batch([plain()] * count, key="k")).json()["transfers"]
        # The peer has done its work; the gateway never hears of it.
        await asyncio.wait_for(worked.wait(), 20)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    script.release()
    expire_leases(bench)
    async with bench.gateway() as client:
        if count == 1:
            assert (await client.post(plain(), key="k")).json()["id"] == accepted[0]["id"]
        for transfer in accepted:
            current = await client.until(transfer["id"], "SUBMITTED")
            # The trace that the row names goes on.
            assert current["traceparent"] == transfer["traceparent"]
            assert bench.suite.signer.signed[transfer["id"]].traceparent == transfer["traceparent"]
            bench.suite.broadcaster.move(transfer["id"], INCLUDED, SAFE, FINALIZED)
            await client.until(transfer["id"], "FINALIZED")
    assert len(bench.suite.txbuilder.reserved) == len(bench.suite.signer.signed) == count
    assert {request.raw_tx for request in bench.suite.broadcaster.requests} == {
        built.unsigned_tx + b":signed" for built in bench.suite.txbuilder.reserved.values()
    }
    assert sorted(built.nonce for built in bench.suite.txbuilder.reserved.values()) == list(range(count))


@pytest.mark.parametrize(("peer", "method"), [("signer", "VoidLink"), ("txbuilder", "ReleaseNonce")])
async def test_a_failure_that_was_interrupted_ends_with_its_first_reason(bench: Bench, peer: str, method: str) -> None:
    bench.suite.signer.script.refuse("SignTransaction", WalletError(Reason.KEY_NOT_FOUND, "no such key"))
    script = getattr(bench.suite, peer).script
    worked = script.hold(method)
    async with gateway_process(bench) as (client, process):
        transfer_id = (await client.post(plain())).json()["id"]
        await asyncio.wait_for(worked.wait(), 20)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    script.release()
    expire_leases(bench)
    async with bench.gateway() as client:
        failed = await client.until(transfer_id, "FAILED")
    assert failed["failure"]["reason"] == "KEY_NOT_FOUND"
    assert bench.suite.txbuilder.released == [transfer_id]
    assert bench.suite.signer.signed == {}


async def test_the_cursor_survives_a_broken_stream_and_a_restart(bench: Bench) -> None:
    broadcaster = bench.suite.broadcaster
    async with bench.gateway() as client:
        transfer_id = (await client.post(plain())).json()["id"]
        await client.until(transfer_id, "SUBMITTED")
        broadcaster.break_streams()
        broadcaster.move(transfer_id, INCLUDED)
        await client.until(transfer_id, "INCLUDED")
    broadcaster.move(transfer_id, SAFE, FINALIZED)
    async with bench.gateway() as client:
        await client.until(transfer_id, "FINALIZED")
        states = [event["state"] async for event in client.events(transfer_id)]
    assert states == ["ACCEPTED", "BUILT", "SIGNED", "SUBMITTED", "INCLUDED", "SAFE", "FINALIZED"]
    assert broadcaster.watched_after[0] == 0
    assert broadcaster.watched_after[-1] == 2


async def test_sigterm_ends_with_0_while_a_stream_is_open(bench: Bench) -> None:
    async with gateway_process(bench) as (client, process):
        bench.suite.broadcaster.queue = True
        transfer_id = (await client.post(plain())).json()["id"]
        await client.until(transfer_id, "SIGNED")

        async def read() -> list[Any]:
            return [event async for event in client.events(transfer_id)]

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        await asyncio.gather(reading, return_exceptions=True)
    # Its leases ended with it.
    assert bench.database.server.execute("SELECT count(*) FROM gateway.workers") == "0"
