"""Several broadcasters as processes, with the lease that they have by default: one is killed, another goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from protos.wallet.v1 import broadcaster_pb2 as pb
from protos.wallet.v1.broadcaster_pb2_grpc import BroadcasterStub
from services.core.entries import Kind
from services.core.errors import WalletError
from services.runtime.channel import PeerChannel, as_channel
from services.runtime.settings import ServiceSettings
from tests.integration.broadcaster_rig import (
    Transfer,
    eventually,
    make_transfer,
    proxied_nodes,
    signed_entries,
)
from tests.integration.running_evidence import DevCa, RunningLog

SUBMITTED, FINALIZED = pb.SUBMISSION_STATE_SUBMITTED, pb.SUBMISSION_STATE_FINALIZED
_LONGEST_TAKEOVER_S = 10.0


@dataclass
class Replica:
    """`python -m services.broadcaster`, and a gateway's channel to it."""

    environment: dict[str, str]
    log: Path
    channel: PeerChannel
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.broadcaster"], env=self.environment, stdout=log, stderr=log
            )

    @property
    def stub(self) -> Any:
        return BroadcasterStub(as_channel(self.channel))

    @property
    def epoch(self) -> int:
        """Of its last lease; 0 before it has had one."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return max((int(line["epoch"]) for line in lines if line["message"] == "leading"), default=0)

    async def serves(self) -> bool:
        try:
            await self.stub.GetBroadcasterStatus(pb.GetBroadcasterStatusRequest(), timeout=2)
        except WalletError:
            return False
        return True

    async def submit(self, *transfers: Transfer) -> None:
        request = pb.SubmitTransactionsRequest(items=[transfer.request() for transfer in transfers])
        reply = await self.stub.SubmitTransactions(request, timeout=10)
        assert all(result.WhichOneof("result") == "submission" for result in reply.results), reply

    async def state(self, transfer: Transfer) -> int:
        return int((await self.stub.GetSubmission(pb.GetSubmissionRequest(transfer_id=transfer.transfer_id))).state)


@dataclass
class Running:
    log: RunningLog
    replicas: list[Replica]

    async def sign(self, *transfers: Transfer) -> None:
        for outcome in await self.log.sequencer.append([entry for one in transfers for entry in signed_entries(one)]):
            assert not isinstance(outcome, Exception), outcome

    def leader(self) -> Replica:
        return max(self.replicas, key=lambda replica: replica.epoch)

    def others(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica is not self.leader()]


@pytest.fixture
async def running(
    service_database: Callable[[str], Any],
    dev_ca: DevCa,
    start_anvil: Callable[..., str],
    dependencies: Any,
    tmp_path: Path,
) -> AsyncIterator[Running]:
    """Three replicas over one database, log and chain."""
    log = RunningLog(
        service_database("evidence").settings,
        dev_ca,
        tmp_path,
        writers=dict.fromkeys(("signer", "broadcaster"), frozenset(Kind)),
    )
    database = service_database("broadcaster")
    async with log.running(), proxied_nodes(start_anvil(block_time_s=0.5)) as proxies:
        await log.client.until(lambda status: status.appending)
        environment = {
            "PATH": os.defpath,
            "OTEL_SDK_DISABLED": "true",
            "WALLET_TLS_DIR": str(dev_ca("broadcaster")),
            "WALLET_PEERS": json.dumps({"evidence": f"127.0.0.1:{log.port}"}),
            "WALLET_NODES_FILE": str(proxies.write(tmp_path / "nodes.json")),
            **database.environment,
        }
        async with _replicas(environment, dev_ca, dependencies, tmp_path) as replicas:
            yield Running(log, replicas)


@asynccontextmanager
async def _replicas(
    environment: dict[str, str], dev_ca: DevCa, dependencies: Any, directory: Path
) -> AsyncIterator[list[Replica]]:
    replicas = []
    for number in range(3):
        address = f"127.0.0.1:{dependencies.ports.free()}"
        settings = ServiceSettings(tls_dir=dev_ca("gateway"), peers={"broadcaster": address})
        replica = Replica(
            {**environment, "WALLET_LISTEN": address},
            directory / f"broadcaster-{number}.log",
            PeerChannel("broadcaster", settings),
        )
        replica.start()
        replicas.append(replica)
    try:
        for replica in replicas:
            await eventually(replica.serves)
        yield replicas
    finally:
        for replica in replicas:
            replica.process.kill()
            replica.process.wait()
            await replica.channel.close()


async def _until_leading(running: Running, epoch: int) -> None:
    async def leads() -> bool:
        return running.leader().epoch > epoch

    await eventually(leads)


async def test_what_a_standby_takes_the_leader_sends_within_a_second(running: Running) -> None:
    await _until_leading(running, 0)
    warm = make_transfer("t-0", 0)
    await running.sign(warm)
    standby = running.others()[0]
    await standby.submit(warm)

    async def seen() -> bool:
        return await standby.state(warm) >= SUBMITTED

    await eventually(seen)
    transfer = make_transfer("t-1", 1)
    await running.sign(transfer)
    accepted_at = time.time()
    await standby.submit(transfer)

    async def is_sent() -> bool:
        rows = await running.log.store.entries_of_links([transfer.transfer_id])
        return any(row.entry_id.startswith("request") for row in rows)

    await eventually(is_sent)
    assert time.time() - accepted_at < 1.0 + 0.5  # and what looking for it takes


async def test_a_killed_leaders_work_goes_on_within_ten_seconds_and_so_does_the_next_ones(running: Running) -> None:
    await _until_leading(running, 0)
    nonces = iter(range(1_000))
    sent: list[Transfer] = []
    for _ in range(2):
        leader, standby = running.leader(), running.others()[-1]
        before = [make_transfer(f"t-{nonce}", nonce) for _, nonce in zip(range(20), nonces, strict=False)]
        await running.sign(*before)
        await standby.submit(*before)
        await asyncio.sleep(0.3)  # in the middle of it
        leader.process.kill()
        killed_at = time.monotonic()
        epoch = leader.epoch
        after = make_transfer(f"t-{(nonce := next(nonces))}", nonce)
        await running.sign(after)
        await standby.submit(after)
        await _until_leading(running, epoch)

        async def is_sent(transfer: Transfer = after, replica: Replica = standby) -> bool:
            return await replica.state(transfer) >= SUBMITTED

        await eventually(is_sent)
        assert time.monotonic() - killed_at < _LONGEST_TAKEOVER_S
        sent += [*before, after]
        leader.start()
        await eventually(leader.serves)

    async def all_final() -> bool:
        replica = running.others()[0]
        states = {await replica.state(transfer) for transfer in sent}
        return states == {FINALIZED}

    await eventually(all_final)
    rows = await running.log.store.entries_of_links([transfer.transfer_id for transfer in sent])
    for transfer in sent:
        ids = [row.entry_id for row in rows if row.link_id == transfer.transfer_id]
        requests = {one.removeprefix("request") for one in ids if one.startswith("request")}
        responses = {one.removeprefix("response") for one in ids if one.startswith("response")}
        assert requests == responses


async def test_a_paused_leader_holds_up_no_takeover_and_writes_nothing_more(running: Running) -> None:
    """Stopped in the middle of whatever it does, and woken once another leads."""
    await _until_leading(running, 0)
    leader = running.leader()
    transfers = [make_transfer(f"t-{nonce}", nonce) for nonce in range(40)]
    await running.sign(*transfers)
    await running.others()[0].submit(*transfers)
    await asyncio.sleep(0.2)
    os.kill(leader.process.pid, signal.SIGSTOP)
    try:
        paused_at = time.monotonic()
        await _until_leading(running, leader.epoch)
        assert time.monotonic() - paused_at < _LONGEST_TAKEOVER_S
    finally:
        os.kill(leader.process.pid, signal.SIGCONT)
    replica = running.leader()

    async def all_final() -> bool:
        return {await replica.state(transfer) for transfer in transfers} == {FINALIZED}

    await eventually(all_final, 60.0)
