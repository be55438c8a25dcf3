"""A signer over a real database and real children, with the log and the keys in memory."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from protos.wallet.v1 import common_pb2, evidence_pb2, signer_pb2
from services.core.addresses import Address
from services.core.errors import Reason, WalletError
from services.core.transactions import Eip1559Transaction, encode_unsigned, signing_digest
from services.runtime.db import Database
from services.runtime.telemetry import new_traceparent
from services.signer.service import SignerService
from services.signer.settings import SignerSettings
from tests.fakes.evidence import FakeEvidence
from tests.fakes.keys import FakeKeys
from tests.integration.dependencies import ServiceDatabase
from tools.stack.postgres import DatabaseServer

FAULTY_WORKER = (sys.executable, "-m", "tests.fakes.faulty_token_worker")
CHAIN = 31337
RECEIVER = Address(bytes.fromhex("11" * 20))
BURN = Address(bytes(20))


class DirectStub:
    """A servicer called without a wire."""

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer

    def __getattr__(self, method: str) -> Callable[..., Any]:
        handler = getattr(self._servicer, method)

        async def call(request: Any, *, timeout: float = 10.0) -> Any:
            return await handler(request, None)

        return call


class Log(FakeEvidence):
    """The log in memory, with appends that fail before or after they took effect."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.fail_before: set[int] = set()  # numbers of calls, from 1
        self.fail_after: set[int] = set()
        self.before_append: Callable[[int], Any] | None = None

    async def AppendEntries(
        self, request: evidence_pb2.AppendEntriesRequest, context: Any
    ) -> evidence_pb2.AppendEntriesResponse:
        self.calls += 1
        number = self.calls
        if self.before_append is not None:
            await self.before_append(number)
        if number in self.fail_before:
            raise WalletError(Reason.SERVICE_UNAVAILABLE, "evidence: down", service="evidence")
        reply = await super().AppendEntries(request, context)
        if number in self.fail_after:
            raise WalletError(Reason.DEADLINE_EXCEEDED, "evidence: the reply is lost", service="evidence")
        return reply

    async def GetEvidenceStatus(
        self, request: evidence_pb2.GetEvidenceStatusRequest, context: Any
    ) -> evidence_pb2.EvidenceStatus:
        return evidence_pb2.EvidenceStatus(appending=self.available, missing=[] if self.available else ["switched off"])

    def kinds(self, link_id: str) -> list[str]:
        return [entry.request.kind for entry in self.link(link_id)]


@cache
def _transport_key_pem() -> bytes:
    """One for the run: no test looks at it, and making it takes longer than most of them."""
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_settings(directory: Path, environment: dict[str, str], **changes: Any) -> SignerSettings:
    """Software keys unless told otherwise."""
    transport = directory / "transport.pem"
    transport.write_bytes(_transport_key_pem())
    hmac_key = directory / "hmac.key"
    hmac_key.write_bytes(secrets.token_bytes(32))
    values: dict[str, Any] = {
        "database_url": environment["WALLET_DATABASE_URL"],
        "database_password_file": environment["WALLET_DATABASE_PASSWORD_FILE"],
        "database_timeout_s": 2.0,
        "token_label": "signer",
        "token_pin_file": directory / "pin",
        "signer_backend": "software",
        "software_transport_key_file": transport,
        "telemetry_hmac_key_file": hmac_key,
        "token_timeout_s": 5.0,
    }
    return SignerSettings(**(values | changes))


def worker_environment(settings: SignerSettings) -> dict[str, str]:
    """What a child reads."""
    return {
        "WALLET_SIGNER_BACKEND": settings.signer_backend,
        "WALLET_SOFTWARE_TRANSPORT_KEY_FILE": str(settings.software_transport_key_file),
        "WALLET_TOKEN_LABEL": settings.token_label,
        "WALLET_TOKEN_PIN_FILE": str(settings.token_pin_file),
    }


@asynccontextmanager
async def signer_replica(
    own: ServiceDatabase, directory: Path, log: Log, keys: FakeKeys, sender: Address, policy: bytes | None = None
) -> AsyncIterator[Harness]:
    """One replica, with policy and transport key on record: the appends counted from here on are the test's."""
    changes: dict[str, Any] = {"token_timeout_s": 1.0}
    if policy is not None:
        changes["policy_file"] = directory / "policy.yaml"
        changes["policy_file"].write_bytes(policy)
    settings = make_settings(directory, own.environment, **changes)
    faults = directory / "faults"
    faults.mkdir(exist_ok=True)
    database = Database(settings)
    stubs: Any = DirectStub(log), DirectStub(log), DirectStub(keys)
    try:
        with mock.patch.dict(os.environ, worker_environment(settings) | {"FAULTS_DIR": str(faults)}):
            async with SignerService(settings, database, *stubs, worker_command=FAULTY_WORKER) as service:
                harness = Harness(service, database, log, keys, sender, faults, own.server)
                status = await harness.api.GetSignerStatus(signer_pb2.GetSignerStatusRequest(), None)
                assert list(status.missing) == []
                log.calls = 0
                yield harness
    finally:
        await database.close()


@dataclass
class Harness:
    service: SignerService
    database: Database
    log: Log
    keys: FakeKeys
    sender: Address
    faults: Path
    server: DatabaseServer

    @property
    def api(self) -> Any:
        return self.service.servicer

    def request(
        self,
        transfer_id: str,
        nonce: int,
        to: Address | None = RECEIVER,
        value_wei: int = 1,
        data: bytes = b"",
        fee_wei: int = 10**9,
        supersedes: str | None = None,
    ) -> signer_pb2.SignTransactionRequest:
        """`fee_wei` is per gas, all of it the tip's too."""
        tx = Eip1559Transaction(CHAIN, nonce, fee_wei, fee_wei, 21_000, to, value_wei, data)
        request = signer_pb2.SignTransactionRequest(
            transfer_id=transfer_id,
            unsigned_tx=encode_unsigned(tx),
            from_address=self.sender,
            key=common_pb2.KeyVersion(key_id="k1", version=1),
            requester=common_pb2.Requester(actor="alice", source_ip="192.0.2.1"),
            traceparent=new_traceparent(),
            supersedes=supersedes,
        )
        request.requester.requested_at.FromDatetime(datetime.now(UTC))
        return request

    def superseding(
        self, link_id: str, nonce: int, supersedes: str, fee_wei: int = 2 * 10**9
    ) -> signer_pb2.SignTransactionRequest:
        return self.request(link_id, nonce, self.sender, 0, fee_wei=fee_wei, supersedes=supersedes)

    async def sign(self, request: signer_pb2.SignTransactionRequest) -> signer_pb2.SignedTransaction:
        signed: signer_pb2.SignedTransaction = await self.api.SignTransaction(request, None)
        return signed

    async def sign_all(self, *requests: signer_pb2.SignTransactionRequest) -> list[signer_pb2.SignResult]:
        reply = await self.api.SignTransactions(signer_pb2.SignTransactionsRequest(items=requests), None)
        return list(reply.results)

    async def void(self, transfer_id: str) -> None:
        await self.api.VoidLink(signer_pb2.VoidLinkRequest(transfer_id=transfer_id, cause="test"), None)

    def fault(self, kind: str, request: signer_pb2.SignTransactionRequest) -> None:
        with (self.faults / kind).open("a") as file:
            file.write(signing_digest(request.unsigned_tx).hex() + "\n")

    def asked(self) -> list[str]:
        """The digests that the token was asked for, in order."""
        path = self.faults / "asked"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def policy() -> bytes | None:
    """What the replicas enforce; a module that cares has its own."""
    return None


@pytest.fixture
async def replicas(
    service_database: Callable[[str], ServiceDatabase], tmp_path: Path, policy: bytes | None
) -> AsyncIterator[tuple[Harness, Harness]]:
    """Two over the same rows, log and keys."""
    own, log, keys = service_database("signer"), Log(), FakeKeys()
    replica = partial(signer_replica, own, tmp_path, log, keys, keys.add("k1"), policy)
    async with replica() as one, replica() as other:
        yield one, other


@pytest.fixture(name="signer")
def first_replica(replicas: tuple[Harness, Harness]) -> Harness:
    return replicas[0]
