"""A gateway over a real database and real HTTP, with fake peers behind real gRPC and mTLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from grpc import aio

from protos.wallet.v1 import (
    broadcaster_pb2_grpc,
    evidence_pb2_grpc,
    keys_pb2_grpc,
    signer_pb2_grpc,
    tracestore_pb2_grpc,
    txbuilder_pb2_grpc,
)
from services.gateway.app import create_app
from services.gateway.credentials import Role
from services.gateway.gateway import Gateway
from services.gateway.http_server import serve_http
from services.gateway.peers import open_peers
from services.gateway.personal import PersonalVault
from services.gateway.settings import GatewaySettings
from services.gateway.store import Store
from services.gateway.token_command import create_token
from services.runtime.db import Database
from services.runtime.server import GrpcServer
from services.runtime.settings import ServiceSettings
from tests.fakes.broadcaster import FakeBroadcaster
from tests.fakes.links import FakeLinks
from tests.fakes.signer import FakeSigner
from tests.fakes.tracestore import FakeTraceStore
from tests.fakes.txbuilder import FakeTxBuilder
from tests.fakes.wallets import FakeWallets

RECEIVER = "0x" + "11" * 20
DEADLINE_S = 20.0


@dataclass
class FakeSuite:
    """The peers, each a gRPC server with its own certificate."""

    keys: FakeWallets = field(default_factory=FakeWallets)
    txbuilder: FakeTxBuilder = field(default_factory=FakeTxBuilder)
    signer: FakeSigner = field(default_factory=FakeSigner)
    broadcaster: FakeBroadcaster = field(default_factory=FakeBroadcaster)
    evidence: FakeLinks = field(default_factory=FakeLinks)
    tracestore: FakeTraceStore = field(default_factory=FakeTraceStore)
    addresses: dict[str, str] = field(default_factory=dict)

    @asynccontextmanager
    async def serve(self, tls_dir: Callable[[str], Path]) -> AsyncIterator[FakeSuite]:
        add: dict[str, Callable[[Any, aio.Server], None]] = {
            "keys": keys_pb2_grpc.add_KeysServicer_to_server,
            "txbuilder": txbuilder_pb2_grpc.add_TxBuilderServicer_to_server,
            "signer": signer_pb2_grpc.add_SignerServicer_to_server,
            "broadcaster": broadcaster_pb2_grpc.add_BroadcasterServicer_to_server,
            "evidence": evidence_pb2_grpc.add_EvidenceServicer_to_server,
            "tracestore": tracestore_pb2_grpc.add_TraceStoreServicer_to_server,
        }
        async with contextlib.AsyncExitStack() as stack:
            for name, add_servicer in add.items():
                settings = ServiceSettings(listen="127.0.0.1:0", tls_dir=tls_dir(name), shutdown_grace_s=0.1)
                server = GrpcServer(name, settings, [])
                add_servicer(getattr(self, name), server.grpc)
                await stack.enter_async_context(server)
                self.addresses[name] = f"127.0.0.1:{server.port}"
            yield self


@dataclass
class Bench:
    """What the tests of the gateway stand on."""

    suite: FakeSuite
    database: Any
    environment: dict[str, str]
    directory: Path
    tokens: dict[Role, str] = field(default_factory=dict)

    @property
    def settings(self) -> GatewaySettings:
        values = {name.removeprefix("WALLET_").lower(): value for name, value in self.environment.items()}
        return GatewaySettings(**values)

    async def token(self, role: Role, expires_in_days: int | None = None) -> str:
        out = self.directory / f"token-{secrets.token_hex(4)}"
        await create_token(self.database.owner_settings, f"{role}-name", role, expires_in_days, out)
        return out.read_text().strip()

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[Client]:
        """A gateway in this process, and an operator's client of it."""
        settings = self.settings
        database, peers = Database(settings), open_peers(settings)
        gateway = Gateway(Store(database), peers, PersonalVault.open(settings.gateway_encryption_key_file))
        working = asyncio.create_task(gateway.run())
        try:
            async with (
                serve_http(create_app(gateway), "127.0.0.1", 0, 1.0) as port,
                self.client(port) as client,
            ):
                client.gateway = gateway
                yield client
                gateway.changes.stop()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await peers.close()
            await database.close()

    @asynccontextmanager
    async def client(self, port: int, role: Role = Role.OPERATOR) -> AsyncIterator[Client]:
        if role not in self.tokens:
            self.tokens[role] = await self.token(role)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {self.tokens[role]}"},
            timeout=DEADLINE_S,
        ) as http:
            yield Client(http, port)


@dataclass
class Client:
    http: httpx.AsyncClient
    port: int
    gateway: Gateway | None = None

    async def post(self, body: Any, key: str | None = None, **headers: str) -> httpx.Response:
        key_header = {"Idempotency-Key": key or secrets.token_hex(8)}
        return await self.http.post("/v1/transfers", json=body, headers={**key_header, **headers})

    async def post_batch(self, items: list[Any], key: str | None = None, **headers: str) -> httpx.Response:
        key_header = {"Idempotency-Key": key or secrets.token_hex(8)}
        return await self.http.post("/v1/transfers:batch", json={"transfers": items}, headers={**key_header, **headers})

    async def transfer(self, transfer_id: str) -> dict[str, Any]:
        response = await self.http.get(f"/v1/transfers/{transfer_id}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def events(self, transfer_id: str, after: str | None = None) -> AsyncIterator[dict[str, Any]]:
        headers = {"Last-Event-ID": after} if after else {}
        async with self.http.stream("GET", f"/v1/transfers/{transfer_id}/events", headers=headers) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            event_id = ""
            async for line in response.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "id":
                    event_id = value
                elif name == "data":
                    yield {"event_id": event_id, **json.loads(value)}

    async def until(self, transfer_id: str, state: str) -> dict[str, Any]:
        """The transfer once it has reached `state`, by its event stream."""
        async with asyncio.timeout(DEADLINE_S):
            async with contextlib.aclosing(self.events(transfer_id)) as events:
                async for event in events:
                    if event["state"] == state:
                        return await self.transfer(transfer_id)
        raise AssertionError(f"the stream ended before {state}")


def plain(value_wei: str = "1", **changes: Any) -> dict[str, Any]:
    body = {"account_id": "acc", "to": RECEIVER, "value_wei": value_wei, **changes}
    return {name: value for name, value in body.items() if value is not None}


@asynccontextmanager
async def open_bench(database: Any, dev_ca: Callable[[str], Path], tmp_path: Path) -> AsyncIterator[Bench]:
    """Peers that know the account `acc`, and the environment of a gateway among them."""
    key_file = tmp_path / "key"
    key_file.write_bytes(bytes(range(32)))
    async with FakeSuite().serve(dev_ca) as suite:
        suite.keys.add_account("acc")
        environment = {
            **database.environment,
            "WALLET_HTTP_LISTEN": "127.0.0.1:0",
            "WALLET_TLS_DIR": str(dev_ca("gateway")),
            "WALLET_PEERS": json.dumps(suite.addresses),
            "WALLET_GATEWAY_ENCRYPTION_KEY_FILE": str(key_file),
            "WALLET_SHUTDOWN_GRACE_S": "1",
        }
        yield Bench(suite, database, environment, tmp_path)
