"""A chain whose clock is behind, and answers whose time the log does not take: transfers wait, and go on."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protos.wallet.v1 import broadcaster_pb2 as pb
from protos.wallet.v1 import evidence_pb2
from services.core.canonical import canonical_json
from tests.integration.broadcaster_rig import CHAIN_ID, Rig, eventually, make_transfer, rig, verify
from tests.integration.dependencies import Dependencies
from tests.integration.running_evidence import DevCa
from tools.stack.chain import EmbeddedChain

QUEUED, SUBMITTED = pb.SUBMISSION_STATE_QUEUED, pb.SUBMISSION_STATE_SUBMITTED
FINALIZED = pb.SUBMISSION_STATE_FINALIZED
CHAIN_CLOCK = pb.STALL_CAUSE_CHAIN_CLOCK
HOUR_S = 3_600


@pytest.fixture
def late_anvil(dependencies: Dependencies) -> Iterator[Callable[[float | None], str]]:
    """`late_anvil(block_time_s)`: URL of a chain whose clock is an hour behind from its first block on."""
    started: list[str] = []

    def start(block_time_s: float | None) -> str:
        chain = EmbeddedChain(dependencies.directory / "anvil.log", dependencies.ports.free(), block_time_s)
        began = ("--timestamp", str(int(time.time()) - HOUR_S))
        name = f"anvil-{chain.spec.ports['json_rpc']}"
        dependencies.launch(replace(chain.spec, command=(*chain.spec.command, *began), name=name))
        started.append(name)
        return chain.url

    yield start
    for name in started:
        dependencies.end(name)


@asynccontextmanager
async def watching(
    service_database: Callable[[str], Any], dev_ca: DevCa, chain_url: str, directory: Path
) -> AsyncIterator[Rig]:
    async with rig(service_database, dev_ca, chain_url, directory, resend_after_s=0.5) as made:
        await made.start()
        await made.until_watching()
        yield made


async def clock(broadcaster: Rig) -> pb.ChainClock:
    request = pb.GetBroadcasterStatusRequest()
    reply = await broadcaster.servicer.GetBroadcasterStatus(request, None)  # type: ignore[arg-type]
    (one,) = reply.chain_clocks
    assert one.chain_id == CHAIN_ID
    return one


async def until_held(broadcaster: Rig, *, held: bool) -> None:
    async def told() -> bool:
        return (await clock(broadcaster)).holds is held

    await eventually(told)


async def test_on_a_chain_that_is_behind_nothing_is_sent_until_its_clock_is_right(
    service_database: Callable[[str], Any], dev_ca: DevCa, late_anvil: Callable[..., str], tmp_path: Path
) -> None:
    async with watching(service_database, dev_ca, late_anvil(0.3), tmp_path) as broadcaster:
        await until_held(broadcaster, held=True)
        assert HOUR_S - 60 < (await clock(broadcaster)).behind_s <= HOUR_S
        transfer = make_transfer("t-0", 0)
        await broadcaster.sign(transfer)
        await broadcaster.submit(transfer)
        await broadcaster.mine(3)
        # Another leader knows it from the first moment on.
        await broadcaster.kill()
        await broadcaster.start()
        await broadcaster.mine(3)
        assert (await broadcaster.status(transfer)).state == QUEUED
        assert await broadcaster.rpc("eth_getTransactionByHash", "0x" + transfer.tx_hash.hex()) is None
        await broadcaster.rpc("evm_setTime", int(time.time()))
        await broadcaster.until(FINALIZED, transfer)
        assert not (await clock(broadcaster)).holds
        await verify(broadcaster, transfer, tmp_path)


async def test_what_is_mined_in_a_block_that_is_too_old_says_what_it_waits_for(
    service_database: Callable[[str], Any], dev_ca: DevCa, late_anvil: Callable[..., str], tmp_path: Path
) -> None:
    """Before a block has come, nobody knows; and its time never changes, so that only a reorg helps."""
    async with watching(service_database, dev_ca, late_anvil(None), tmp_path) as broadcaster:
        transfer = make_transfer("t-0", 0)
        await broadcaster.sign(transfer)
        await broadcaster.submit(transfer)
        waiting = await broadcaster.until_status(transfer, lambda now: now.stall == CHAIN_CLOCK)
        assert waiting.state == SUBMITTED
        await until_held(broadcaster, held=True)
        await broadcaster.rpc("anvil_rollback", 1)
        # The rollback has set it, too.
        await broadcaster.rpc("evm_setTime", int(time.time()))
        await broadcaster.mine(3)
        await broadcaster.until_known(transfer)
        await broadcaster.mine(3)
        await broadcaster.until(FINALIZED, transfer)
        assert (await broadcaster.status(transfer)).stall == pb.STALL_CAUSE_UNSPECIFIED
        await verify(broadcaster, transfer, tmp_path)


async def test_an_answer_that_the_log_refuses_is_asked_for_again(
    service_database: Callable[[str], Any], dev_ca: DevCa, start_anvil: Callable[..., str], tmp_path: Path
) -> None:
    """An inclusion needs an answer in the log; the transaction is mined long since."""
    refused = 0

    def an_hour_ahead(request: evidence_pb2.AppendEntriesRequest) -> None:
        nonlocal refused
        for entry in request.entries:
            if entry.kind == "response" and entry.entry_id.endswith(":1"):
                body = json.loads(entry.body)
                body["received_at"] = "2099-01-01T00:00:00.000000Z"
                entry.body = canonical_json(body)
                refused += 1

    async with watching(service_database, dev_ca, start_anvil(0.3), tmp_path) as broadcaster:
        broadcaster.evidence.before = an_hour_ahead
        transfer = make_transfer("t-0", 0)
        await broadcaster.sign(transfer)
        await broadcaster.submit(transfer)
        await broadcaster.until(FINALIZED, transfer)
        assert refused == 2
        await verify(broadcaster, transfer, tmp_path)
