"""evidence as tests run it: as a process of its own, or in the test's loop where a clock or an inner view is needed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protos.wallet.v1 import evidence_pb2 as pb
from protos.wallet.v1 import evidence_pb2_grpc
from services.core.entries import Kind
from services.core.errors import Reason, WalletError
from services.core.notes import NoteKey
from services.evidence.announcing import announce
from services.evidence.bundles import BundleMaker
from services.evidence.checkpoint_file import CheckpointFile
from services.evidence.checkpoints import CheckpointCutter
from services.evidence.memory import Memory
from services.evidence.sequencer import Sequencer
from services.evidence.servicer import EvidenceServicer
from services.evidence.store import Store
from services.evidence.tiles import TileReader
from services.evidence.writers import Writers
from services.runtime.channel import PeerChannel, as_channel
from services.runtime.db import Database
from services.runtime.server import GrpcServer
from services.runtime.settings import DatabaseSettings, ServiceSettings
from tools.stack.tokens import Token

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
ORIGIN = "goldenlink.example/log"
DevCa = Callable[[str], Path]


def entry(
    link_id: str, entry_id: str = "key:1", body: object = None, kind: str = "key", trace_id: str = TRACE_ID
) -> pb.AppendEntryRequest:
    """An administrative entry, unless told otherwise; `body` is JSON that needs no RFC 8785 care, or bytes."""
    encoded = body if isinstance(body, bytes) else json.dumps(body or {"n": 1}, separators=(",", ":")).encode()
    return pb.AppendEntryRequest(
        link_id=link_id, entry_id=entry_id, kind=kind, trace_id=trace_id, span_id=SPAN_ID, body=encoded
    )


@dataclass
class Client:
    """A caller of evidence."""

    channel: PeerChannel
    stub: evidence_pb2_grpc.EvidenceAsyncStub = field(init=False)

    def __post_init__(self) -> None:
        self.stub = evidence_pb2_grpc.EvidenceStub(as_channel(self.channel))

    async def append(self, request: pb.AppendEntryRequest, timeout_s: float = 10) -> pb.AppendedEntry:
        return await self.stub.AppendEntry(request, timeout=timeout_s)

    async def append_all(self, *requests: pb.AppendEntryRequest, timeout_s: float = 30) -> Sequence[pb.AppendResult]:
        return (await self.stub.AppendEntries(pb.AppendEntriesRequest(entries=requests), timeout=timeout_s)).results

    async def status(self) -> pb.EvidenceStatus:
        return await self.stub.GetEvidenceStatus(pb.GetEvidenceStatusRequest(), timeout=5)

    async def checkpoint(self) -> pb.Checkpoint:
        return await self.stub.GetCheckpoint(pb.GetCheckpointRequest(), timeout=5)

    async def bundle(self, link_id: str, wait_ms: int = 5_000) -> bytes:
        return (await self.stub.GetBundle(pb.GetBundleRequest(link_id=link_id, wait_ms=wait_ms), timeout=10)).document

    async def until(self, holds: Callable[[pb.EvidenceStatus], bool], timeout_s: float = 15) -> pb.EvidenceStatus:
        """The first status for which `holds`; calls that fail meanwhile are tried again."""
        status = pb.EvidenceStatus()
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    status = await self.status()
                    if holds(status):
                        return status
                except WalletError as error:
                    if error.reason not in (Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXCEEDED):
                        raise
                await asyncio.sleep(0.02)


@asynccontextmanager
async def calling(dev_ca: DevCa, port: int, caller: str = "signer") -> AsyncIterator[Client]:
    channel = PeerChannel("evidence", ServiceSettings(tls_dir=dev_ca(caller), peers={"evidence": f"127.0.0.1:{port}"}))
    try:
        yield Client(channel)
    finally:
        await channel.close()


@dataclass
class KeyInMemory:
    """A checkpoint key that is not in a token."""

    private_key: Ed25519PrivateKey
    note_key: NoteKey

    async def sign(self, text: bytes) -> bytes:
        return self.private_key.sign(text)

    async def held(self) -> bool:
        return True


@dataclass
class RunningLog:
    """A log in this process, over real gRPC and PostgreSQL; its checkpoint key is not in a token."""

    settings: DatabaseSettings
    dev_ca: DevCa
    directory: Path
    private_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    nodes_required: int = 2
    lease_s: float = 1.0
    # One caller writes whole links here; tests of the process meet the real table.
    writers: Writers = field(default_factory=lambda: {"signer": frozenset(Kind)})
    interval_s: float = 0.1
    client: Client = field(init=False)
    port: int = field(init=False)

    def __post_init__(self) -> None:
        self.key = NoteKey(ORIGIN, self.private_key.public_key().public_bytes_raw())
        self.database = Database(self.settings)
        self.store = Store(self.database)
        self.tiles = TileReader(self.store)
        self.sequencer = Sequencer(
            self.store,
            nodes_required=self.nodes_required,
            lease_s=self.lease_s,
            max_waiting_entries=20_000,
            clock=self._time,
        )

        key, own_tiles = KeyInMemory(self.private_key, self.key), TileReader(self.store)
        file = CheckpointFile(self.directory / "checkpoint", self.key)
        self.memory = Memory(self.store, own_tiles, key, file, None)
        self.checkpoints = CheckpointCutter(self.store, own_tiles, self.sequencer, key, self.memory, self.interval_s)

    async def _time(self, last: datetime | None) -> datetime:
        return max(self.clock(), last or self.clock())

    @property
    def trust(self) -> bytes:
        return json.dumps(
            {
                "format": "goldenlink.trust.v1",
                "evidence_keys": [self.key.vkey],
                "chain_ids": ["eip155:31337"],
                "min_agreeing_nodes": 2,
                "ledger": None,
            }
        ).encode()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RunningLog]:
        settings = ServiceSettings(listen="127.0.0.1:0", tls_dir=self.dev_ca("evidence"))
        server = GrpcServer("evidence", settings, [])
        maker = BundleMaker(self.store, self.tiles, self.checkpoints)
        servicer = EvidenceServicer(self.sequencer, maker, self.checkpoints, self.key, self.writers)
        evidence_pb2_grpc.add_EvidenceServicer_to_server(servicer, server.grpc)
        tasks = [
            asyncio.create_task(self.sequencer.run(self.memory)),
            asyncio.create_task(self.checkpoints.run()),
            asyncio.create_task(announce(self.sequencer, server)),
        ]
        try:
            async with server, calling(self.dev_ca, server.port) as self.client:
                self.port = server.port
                await self.client.until(lambda status: status.appending or "opened" not in status.missing[0])
                yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.database.close()


@dataclass
class EvidenceProcess:
    """`python -m services.evidence`, started and stopped at will; what it prints is in `log`."""

    database: dict[str, str]
    dev_ca: DevCa
    token: Token
    directory: Path
    port: int
    tiles_port: int
    extra: dict[str, str] = field(default_factory=dict)
    # Ports of the replicas that it knows.
    replicas: list[int] = field(default_factory=list)
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def log(self) -> Path:
        return self.directory / f"log-{self.port}"

    @property
    def checkpoint_file(self) -> Path:
        return self.directory / "checkpoint"

    @property
    def environment(self) -> dict[str, str]:
        replicas = ",".join(f"127.0.0.1:{port}" for port in self.replicas or [self.port])
        return {
            "PATH": os.defpath,
            "WALLET_PEERS": json.dumps({"evidence": f"ipv4:{replicas}"}),
            "OTEL_SDK_DISABLED": "true",
            "WALLET_LISTEN": f"127.0.0.1:{self.port}",
            "WALLET_TILES_LISTEN": f"127.0.0.1:{self.tiles_port}",
            "WALLET_TLS_DIR": str(self.dev_ca("evidence")),
            "WALLET_CHECKPOINT_FILE": str(self.checkpoint_file),
            "WALLET_CHECKPOINT_INTERVAL_S": "0.2",
            "WALLET_EVIDENCE_ORIGIN": ORIGIN,
            **self.token.environment(),
            **self.database,
            **self.extra,
        }

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.evidence"], env=self.environment, stdout=log, stderr=log
            )

    async def ended(self, timeout_s: float = 10) -> int:
        return await asyncio.to_thread(self.process.wait, timeout_s)

    @asynccontextmanager
    async def running(self, appending: bool = True) -> AsyncIterator[Client]:
        """Started, and appending unless that is not expected; killed at the end, if it has not ended."""
        self.start()
        try:
            async with calling(self.dev_ca, self.port, "keys") as client:
                await client.until(lambda status: status.appending or not appending)
                yield client
        except TimeoutError:
            raise AssertionError(self.log.read_text()) from None
        finally:
            self.process.kill()
            await self.ended()
