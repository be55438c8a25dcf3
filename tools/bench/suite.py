"""A running suite as the bench uses it: the gateway's HTTP API, and services called as the gateway calls them."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from grpc_health.v1 import health_pb2_grpc
from sqlalchemy import make_url

from protos.wallet.v1 import common_pb2, evidence_pb2_grpc, keys_pb2, keys_pb2_grpc, signer_pb2_grpc
from services.runtime.channel import PeerChannel, as_channel
from services.runtime.db import Database
from services.runtime.settings import DatabaseSettings, ServiceSettings
from tools.stack.options import StackOptions
from tools.stack.stack import Stack

CHAIN_ID = "eip155:31337"
_FUNDS_WEI = 10**24
_ENDED = frozenset({"FINALIZED", "FAILED"})
_TIMEOUT = aiohttp.ClientTimeout(total=60.0)
# From acceptance to the end; a stack that loses a transfer stops the bench here.
_FOLLOW_TIMEOUT = aiohttp.ClientTimeout(total=300.0)


class BenchFailed(Exception):
    """The suite did not do what was to be measured."""


@dataclass(frozen=True)
class Account:
    id: str
    address: bytes
    key: common_pb2.KeyVersion


class Suite:
    def __init__(self, stack: Stack, http: aiohttp.ClientSession) -> None:
        tls, peers = stack.foundation.tls, stack.foundation.addresses
        settings = ServiceSettings(tls_dir=tls / "gateway", peers=peers)
        keys, signer = (PeerChannel(name, settings) for name in ("keys", "signer"))
        # Leaf keys go to signers only, and only they enter intents: the bare token is one more of them.
        as_signer = ServiceSettings(tls_dir=tls / "signer", peers=peers)
        keys_for_signers, evidence = (PeerChannel(name, as_signer) for name in ("keys", "evidence"))
        self._channels = (keys, signer, evidence, keys_for_signers)
        self._http = http
        self._chain_url = stack.record["chain_url"]
        # Requests go to each of them in turn.
        self._gateways = itertools.cycle(stack.gateway_urls)
        self.stack = stack
        self.keys = keys_pb2_grpc.KeysStub(as_channel(keys))
        self.keys_for_signers = keys_pb2_grpc.KeysStub(as_channel(keys_for_signers))
        self.signer = signer_pb2_grpc.SignerStub(as_channel(signer))
        self.signer_health = health_pb2_grpc.HealthStub(as_channel(signer))
        self.evidence = evidence_pb2_grpc.EvidenceStub(as_channel(evidence))

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    def open_database(self) -> Database:
        """The stack's PostgreSQL by the class that the services use, as its superuser."""
        server = self.stack.foundation.database
        return Database(
            DatabaseSettings(
                database_url=server.role_url(make_url(server.url).username or "postgres"),
                database_password_file=self.stack.foundation.database_password_file if server.password else None,
            )
        )

    def sql(self, statement: str) -> str:
        return self.stack.foundation.database.execute(statement)

    # The chain

    async def chain(self, method: str, *parameters: Any) -> Any:
        call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(parameters)}
        async with self._http.post(self._chain_url, json=call) as reply:
            answer = await reply.json()
        if "error" in answer:
            raise BenchFailed(f"{method}: {answer['error']['message']}")
        return answer["result"]

    async def transactions_of(self, account: Account) -> int:
        """How many of the account's transactions are mined."""
        return int(await self.chain("eth_getTransactionCount", "0x" + account.address.hex(), "latest"), 16)

    # The gateway

    async def get(self, path: str, **query: str | int) -> Any:
        return json.loads(await self.get_bytes(path, **query))

    async def get_bytes(self, path: str, **query: str | int) -> bytes:
        async with self._http.get(next(self._gateways) + path, params=query) as reply:
            return await _body(reply)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        async with self._http.post(next(self._gateways) + path, json=body, headers=headers) as reply:
            return json.loads(await _body(reply))

    async def account(self) -> Account:
        """A new account of a new wallet, with ether."""
        wallet = await self.post("/v1/wallets", {"name": "bench"})
        made = await self.post(f"/v1/wallets/{wallet['id']}/accounts", {"chain_id": CHAIN_ID})
        await self.chain("anvil_setBalance", made["address"], hex(_FUNDS_WEI))
        account = await self.keys.GetAccount(keys_pb2.GetAccountRequest(account_id=made["id"]))
        return Account(made["id"], account.address, account.key)

    async def transfer(self, account: Account) -> str:
        """Have one plain transfer to a new address accepted; its id."""
        made = await self.post("/v1/transfers", _plain_transfer(account))
        return str(made["id"])

    async def transfer_batch(self, account: Account, count: int) -> list[str]:
        """Have `count` plain transfers accepted at once; their ids in order."""
        made = await self.post("/v1/transfers:batch", {"transfers": [_plain_transfer(account) for _ in range(count)]})
        return [transfer["id"] for transfer in made["transfers"]]

    async def follow(self, transfer_id: str) -> AsyncGenerator[dict[str, Any], None]:
        """The transfer's changes of state as they come, until the last."""
        url = f"{next(self._gateways)}/v1/transfers/{transfer_id}/events"
        async with self._http.get(url, timeout=_FOLLOW_TIMEOUT) as reply:
            if reply.status != 200:
                await _body(reply)
            async for line in reply.content:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "data":
                    event: dict[str, Any] = json.loads(value)
                    yield event
                    if event["state"] in _ENDED:
                        return
        raise BenchFailed(f"the events of {transfer_id} ended before the transfer did")

    async def wait_finalized(self, transfer_id: str) -> None:
        async for event in self.follow(transfer_id):
            if event["state"] == "FAILED":
                raise BenchFailed(f"{transfer_id} failed: {event['failure']}")


def _plain_transfer(account: Account) -> dict[str, str]:
    # Lower-case hex: no checksum to compute for each.
    return {"account_id": account.id, "to": f"0x{secrets.token_hex(20)}", "value_wei": "1"}


async def _body(reply: aiohttp.ClientResponse) -> bytes:
    body = await reply.read()
    if reply.status >= 400:
        raise BenchFailed(f"{reply.method} {reply.url.path}: {reply.status} {body.decode(errors='replace')[:500]}")
    return body


@asynccontextmanager
async def running_suite(directory: Path, options: StackOptions) -> AsyncIterator[Suite]:
    """Start a stack, and end it with the block."""
    async with Stack(directory, options) as stack:
        token = stack.api_token_file("operator").read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {token}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(headers=headers, timeout=_TIMEOUT, connector=connector) as http:
            suite = Suite(stack, http)
            try:
                yield suite
            finally:
                await suite.close()
