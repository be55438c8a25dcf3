"""A gateway over a real database and real HTTP, with fake peers behind real gRPC and mTLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from protos.wallet.v1 import keys_pb2
from services.gateway.app import create_app
from services.gateway.credentials import Role
from services.gateway.gateway import Gateway
from services.gateway.http_server import serve_http
from services.gateway.peers import open_peers
from services.gateway.personal import PersonalVault
from services.gateway.settings import GatewaySettings
from services.gateway.token_command import create_token
from services.runtime.db import Database
from tests.fakes.suite import FakeSuite

RECEIVER = "0x" + "11" * 20
DEADLINE_S = 20.0


@dataclass
class Bench:
    """What the tests of the gateway stand on."""

    suite: FakeSuite
    database: Any
    environment: dict[str, str]
    directory: Path
    account: keys_pb2.Account
    tokens: dict[Role, str] = field(default_factory=dict)

    @property
    def settings(self) -> GatewaySettings:
        values = {name.removeprefix("WALLET_").lower(): value for name, value in self.environment.items()}
        return GatewaySettings(**values)

    async def token(self, role: Role, expires_in_days: int | None = None, name: str = "") -> str:
        out = self.directory / f"token-{secrets.token_hex(4)}"
        await create_token(self.database.owner_settings, name or f"{role}-name", role, expires_in_days, out)
        return out.read_text().strip()

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[Client]:
        """A gateway in this process, and an operator's client of it."""
        settings = self.settings
        database, peers = Database(settings), open_peers(settings)
        gateway = Gateway(database, peers, PersonalVault.open(settings.gateway_encryption_key_file), settings)
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

    async def events(
        self, transfer_id: str, after: str | None = None, until: str = ""
    ) -> AsyncIterator[dict[str, Any]]:
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
                    event = {"event_id": event_id, **json.loads(value)}
                    yield event
                    if event["state"] == until:
                        return

    async def until(self, transfer_id: str, state: str) -> dict[str, Any]:
        """The transfer once it has reached `state`, by its event stream."""
        async with asyncio.timeout(DEADLINE_S):
            async with contextlib.aclosing(self.events(transfer_id)) as events:
                async for event in events:
                    if event["state"] == state:
                        return await self.transfer(transfer_id)
        raise AssertionError(f"the stream ended before {state}")

    async def when(self, transfer_id: str, found: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The transfer once it is as wanted."""
        view: dict[str, Any] = {}
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not found(view := await self.transfer(transfer_id)):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"not so in {DEADLINE_S} s: {view}") from None
        return view

    async def appears(self, transfer_id: str) -> None:
        """Once the gateway has made it by itself."""
        async with asyncio.timeout(DEADLINE_S):
            while (await self.http.get(f"/v1/transfers/{transfer_id}")).status_code == 404:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def until_idle(self) -> None:
        """Until this gateway's saga has nothing in its hands."""
        assert self.gateway is not None
        async with asyncio.timeout(DEADLINE_S):
            while self.gateway.dispatcher._tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def plain(value_wei: str = "1", **changes: Any) -> dict[str, Any]:
    body = {"account_id": "acc", "to": RECEIVER, "value_wei": value_wei, **changes}
    return {name: value for name, value in body.items() if value is not None}


@asynccontextmanager
async def open_bench(database: Any, dev_ca: Callable[[str], Path], tmp_path: Path) -> AsyncIterator[Bench]:
    """Peers that know the account `acc`, and the environment of a gateway among them."""
    key_file = tmp_path / "key"
    key_file.write_bytes(bytes(range(32)))
    async with FakeSuite().serve(dev_ca) as suite:
        account = suite.keys.add_account("acc")
        environment = {
            **database.environment,
            "WALLET_HTTP_LISTEN": "127.0.0.1:0",
            "WALLET_TLS_DIR": str(dev_ca("gateway")),
            "WALLET_PEERS": json.dumps(suite.addresses),
            "WALLET_GATEWAY_ENCRYPTION_KEY_FILE": str(key_file),
            "WALLET_SHUTDOWN_GRACE_S": "1",
        }
        yield Bench(suite, database, environment, tmp_path, account)


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


@pytest.fixture(name="bench")
async def gateway_bench(
    service_database: Callable[[str], Any], dev_ca: Callable[[str], Path], tmp_path: Path
) -> AsyncIterator[Bench]:
    async with open_bench(service_database("gateway"), dev_ca, tmp_path) as bench:
        yield bench


@pytest.fixture(name="client")
async def gateway_client(bench: Bench) -> AsyncIterator[Client]:
    async with bench.gateway() as client:
        yield client
