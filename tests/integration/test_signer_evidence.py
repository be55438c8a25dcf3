"""signer over the real log: what it writes is taken, and what comes out verifies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from services.core.errors import Reason, WalletError
from services.runtime.db import Database
from services.runtime.settings import SERVICES_DIR
from services.signer.service import SignerService
from tests.fakes.keys import FakeKeys
from tests.integration.conftest import ServiceDatabase
from tests.integration.running_evidence import RunningLog
from tests.integration.signer_harness import BURN, DirectStub, Harness, Log, make_settings, worker_environment


@pytest.fixture
async def log(
    service_database: Callable[[str], ServiceDatabase], dev_ca: Callable[[str], Path], tmp_path: Path
) -> AsyncIterator[RunningLog]:
    async with RunningLog(service_database("evidence").settings, dev_ca, tmp_path).running() as log:
        yield log


@pytest.fixture
async def signer(
    log: RunningLog,
    service_database: Callable[[str], ServiceDatabase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Harness]:
    own = service_database("signer")
    settings = make_settings(tmp_path, own.environment)
    for name, value in worker_environment(settings).items():
        monkeypatch.setenv(name, value)
    keys = FakeKeys()
    database = Database(settings)
    stub: Any = DirectStub(keys)
    async with SignerService(settings, database, log.client.stub, log.client.stub, stub) as service:
        yield Harness(service, database, Log(), keys, keys.add("k1"), tmp_path, own.server)
    await database.close()


async def _verify(log: RunningLog, link_id: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    bundle, trust = directory / f"{link_id}.json", directory / "trust.json"
    bundle.write_bytes(await log.client.bundle(link_id))
    trust.write_bytes(log.trust)
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tools.verify", str(bundle), str(trust), *options],
        cwd=SERVICES_DIR.parent,
        capture_output=True,
        text=True,
        check=False,
    )


async def test_a_signature_and_a_refusal_verify_offline(signer: Harness, log: RunningLog, tmp_path: Path) -> None:
    request = signer.request("t-1", 0)
    signed = await signer.sign(request)
    # Its database lost, the signer answers what the log holds.
    signer.server.execute("SET session_replication_role = replica; DELETE FROM signer.register")
    assert await signer.sign(request) == signed
    proof = await _verify(log, "t-1", tmp_path, "--state", "SIGNED")
    assert proof.returncode == 0, proof.stdout + proof.stderr

    with pytest.raises(WalletError) as refusal:
        await signer.sign(signer.request("t-2", 1, to=BURN))
    assert refusal.value.reason is Reason.POLICY_DENIED
    proof = await _verify(log, "t-2", tmp_path)
    assert proof.returncode == 0, proof.stdout + proof.stderr


async def test_a_bump_and_a_superseding_link_verify_offline(signer: Harness, log: RunningLog, tmp_path: Path) -> None:
    request = signer.request("t-1", 0)
    bump = signer.request("t-1", 0, fee_wei=2 * 10**9)
    bump.traceparent = request.traceparent
    await signer.sign(request)
    await signer.sign(bump)
    await signer.sign(signer.superseding("t-1:cancel", 0, "t-1", 3 * 10**9))
    await signer.sign(signer.superseding("gap:1", 1, ""))
    for link_id in ("t-1", "t-1:cancel", "gap:1"):
        proof = await _verify(log, link_id, tmp_path, "--state", "SIGNED")
        assert proof.returncode == 0, proof.stdout + proof.stderr


async def test_a_batch_goes_through_the_real_log(signer: Harness) -> None:
    results = await signer.sign_all(*(signer.request(f"t-{nonce}", nonce) for nonce in range(100)))
    assert all(result.HasField("signed") for result in results)
    indexes = [result.signed.signature_index for result in results]
    assert indexes == sorted(indexes)
