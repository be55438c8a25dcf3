"""signer as a process: mTLS, a real SoftHSM token in a real child, log and keys behind real gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from protos.wallet.v1 import evidence_pb2_grpc, keys_pb2_grpc, signer_pb2
from protos.wallet.v1.signer_pb2_grpc import SignerStub
from services.core.errors import Reason, WalletError
from services.core.transactions import decode_raw, decode_unsigned
from services.runtime.channel import PeerChannel, as_channel
from services.runtime.evidence_log import APPENDING
from services.runtime.server import GrpcServer
from services.runtime.settings import SERVICES_DIR, ServiceSettings
from tests.fakes.keys import FakeKeys
from tests.integration.conftest import Dependencies, ServiceDatabase
from tests.integration.signer_harness import BURN, Harness, Log
from tools.stack.tokens import Token

_START_S = 30.0


class Running:
    def __init__(
        self, process: asyncio.subprocess.Process, harness: Harness, stubs: dict[str, SignerStub], pin: str
    ) -> None:
        self.process = process
        self.pin = pin
        self.harness = harness
        self.stubs = stubs

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
async def running(
    service_database: Callable[[str], ServiceDatabase],
    softhsm_token: Callable[[str], Token],
    dev_ca: Callable[[str], Path],
    dependencies: Dependencies,
    tmp_path: Path,
) -> AsyncIterator[Running]:
    log, keys = Log(), FakeKeys()
    evidence = GrpcServer("evidence", _settings(dev_ca, "evidence"), ["wallet.v1.Evidence"])
    evidence_pb2_grpc.add_EvidenceServicer_to_server(log, evidence.grpc)
    evidence.report(APPENDING, serving=True)
    keys_server = GrpcServer("keys", _settings(dev_ca, "keys"), ["wallet.v1.Keys"])
    keys_pb2_grpc.add_KeysServicer_to_server(keys, keys_server.grpc)
    hmac_key = tmp_path / "hmac.key"
    hmac_key.write_bytes(secrets.token_bytes(32))
    port = dependencies.ports.free()
    async with evidence, keys_server:
        token = softhsm_token("signer")
        pin = token.pin_file.read_text().strip()
        environment = os.environ | service_database("signer").environment | token.environment()
        environment |= {
            "WALLET_LISTEN": f"127.0.0.1:{port}",
            "WALLET_TLS_DIR": str(dev_ca("signer")),
            "WALLET_PEERS": json.dumps(
                {"evidence": f"127.0.0.1:{evidence.port}", "keys": f"127.0.0.1:{keys_server.port}"}
            ),
            "WALLET_TELEMETRY_HMAC_KEY_FILE": str(hmac_key),
            "OTEL_SDK_DISABLED": "true",
        }
        output = tmp_path / "signer.log"
        with output.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.signer",
                env=environment, cwd=SERVICES_DIR.parent, stdout=sink, stderr=sink,
            )  # fmt: skip
        try:
            async with _stub(dev_ca, "gateway", port) as gateway, _stub(dev_ca, "keys", port) as stranger:
                await _wait_until_ready(gateway, process)
                harness = Harness(None, None, log, keys, keys.add("k1"), tmp_path, None)  # type: ignore[arg-type]
                yield Running(process, harness, {"gateway": gateway, "keys": stranger}, pin)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        # Nothing but JSON lines, and no traceback in them.
        for line in output.read_text().splitlines():
            assert "exception" not in json.loads(line)


def _settings(dev_ca: Callable[[str], Path], service: str) -> ServiceSettings:
    return ServiceSettings(tls_dir=dev_ca(service), listen="127.0.0.1:0")


@asynccontextmanager
async def _stub(dev_ca: Callable[[str], Path], caller: str, port: int) -> AsyncIterator[SignerStub]:
    channel = PeerChannel("signer", ServiceSettings(tls_dir=dev_ca(caller), peers={"signer": f"127.0.0.1:{port}"}))
    yield SignerStub(as_channel(channel))
    await channel.close()


async def _wait_until_ready(stub: SignerStub, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(_START_S):
        while not await _is_ready(stub):
            assert process.returncode is None
            await asyncio.sleep(0.05)


async def _is_ready(stub: SignerStub) -> bool:
    try:
        status = await stub.GetSignerStatus(signer_pb2.GetSignerStatusRequest())
    except WalletError as error:
        if error.reason is Reason.SERVICE_UNAVAILABLE:
            return False
        raise
    return status.transport_key_approved and not status.missing


async def test_a_transfer_is_signed_and_a_denied_one_is_refused(running: Running) -> None:
    request = running.harness.request("t-1", 0)
    signed = await running.stubs["gateway"].SignTransaction(request)
    assert decode_raw(signed.raw_tx)[0] == decode_unsigned(request.unsigned_tx)
    with pytest.raises(WalletError) as refusal:
        await running.stubs["gateway"].SignTransaction(running.harness.request("t-2", 1, to=BURN))
    assert refusal.value.reason is Reason.POLICY_DENIED
    assert "destinations.deny" in str(refusal.value.details["rule"])


async def test_only_the_gateway_may_ask(running: Running) -> None:
    with pytest.raises(WalletError) as refusal:
        await running.stubs["keys"].SignTransaction(running.harness.request("t-1", 0))
    assert refusal.value.reason is Reason.CALLER_NOT_ALLOWED
    assert running.harness.log.link("t-1") == []


async def test_a_stop_ends_the_children_and_succeeds(running: Running) -> None:
    children = running.children()
    assert len(children) == 1
    running.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(running.process.wait(), 20) == 0
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 5)
    assert alive == []


async def test_a_killed_signer_leaves_no_child(running: Running) -> None:
    children = running.children()
    running.process.kill()
    await running.process.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 5)
    assert alive == []


async def test_the_pin_is_in_no_process_listing(running: Running) -> None:
    for process in [psutil.Process(running.process.pid), *running.children()]:
        listing = " ".join([*process.cmdline(), *process.environ().values()])
        assert running.pin not in listing
