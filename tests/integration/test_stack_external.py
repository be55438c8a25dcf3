"""Real ones in place of the embedded four: a transfer ends on them, and `stop` leaves them as an operator expects."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis
from aiohttp import web

from tests.integration.dependencies import Dependencies, OwnPostgres, run_to_end
from tests.integration.suite.redis_monitor import RedisMonitor
from tests.integration.suite.running_suite import Suite, somebody
from tools.demo.chain import DevelopmentChain
from tools.stack.nodes import NodeAddress, check_nodes, write_nodes_file
from tools.stack.options import External, StackOptions
from tools.stack.postgres import DatabaseServer
from tools.stack.processes import ProcessTable, StackError
from tools.stack.redis_server import EmbeddedRedis, check_redis
from tools.stack.services import SERVICE_NAMES
from tools.stack.shutdown import run_directory
from tools.stack.stack import Stack
from tools.stack.tokens import SOFTHSM_LIBRARY, ExternalTokens, existing_token

ROOT = Path(__file__).resolve().parents[2]
CHAIN_ID = "eip155:31337"
TOKENS = ("evidence", "keys", "signer")


class GuardedNode:
    """A node as providers sell them: its URL's path holds a secret, and without it there is no answer."""

    def __init__(self, name: str, upstream: str) -> None:
        self.secret = secrets.token_hex(16)
        self.answered = 0
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        port = self._run(self._start())
        self.address = NodeAddress(name, f"http://127.0.0.1:{port}/v3/{self.secret}", CHAIN_ID)

    def stop(self) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, step: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(step, self._loop).result(10.0)

    async def _start(self) -> int:
        self._session = aiohttp.ClientSession()
        application = web.Application(client_max_size=1 << 24)
        application.router.add_post("/v3/{secret}", self._answer)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return int(self._runner.addresses[0][1])

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, request: web.Request) -> web.Response:
        if request.match_info["secret"] != self.secret:
            return web.Response(status=401)
        self.answered += 1
        headers = {"content-type": "application/json"}
        async with self._session.post(self._upstream, data=await request.read(), headers=headers) as answer:
            return web.Response(status=answer.status, body=await answer.read(), headers=headers)


@pytest.fixture
def nodes(start_anvil: Callable[..., str]) -> Iterator[tuple[str, list[GuardedNode]]]:
    """URL of a chain that nobody but us started, and three nodes of it."""
    chain = start_anvil(block_time_s=0.5)
    started = [GuardedNode(f"real-{letter}", chain) for letter in "abc"]
    yield chain, started
    for node in started:
        node.stop()


@pytest.fixture
def redis_apart(dependencies: Dependencies) -> Iterator[str]:
    """URL, with password, of a server that somebody else uses too."""
    directory = dependencies.directory / "redis-apart"
    server = EmbeddedRedis(directory, directory.with_suffix(".log"), dependencies.ports.free())
    dependencies.launch(server.spec.named("redis-apart"))
    with redis.Redis.from_url(server.url) as client:
        client.set("stranger", "here before")
    yield server.url
    dependencies.end("redis-apart")


@dataclass
class TokenVault:
    """A PKCS#11 library at another path, with tokens as an operator makes them: by the vendor's own tool."""

    directory: Path
    pins: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.library = self.directory / "vendor" / "libhsm.so"
        self.library.parent.mkdir(parents=True)
        shutil.copy(SOFTHSM_LIBRARY, self.library)
        (self.directory / "tokens").mkdir()
        self.configuration = self.directory / "hsm.conf"
        self.configuration.write_text(f"directories.tokendir = {self.directory / 'tokens'}\nlog.level = ERROR\n")
        self.pin_directory = self.directory / "pins"
        self.pin_directory.mkdir(mode=0o700)

    def make(self, label: str) -> None:
        self.pins[label] = secrets.token_hex(8)
        command = ["softhsm2-util", "--module", str(self.library), "--init-token", "--free", "--label", label]
        pins = ["--so-pin", secrets.token_hex(8), "--pin", self.pins[label]]
        environment = {"PATH": os.environ["PATH"], "SOFTHSM2_CONF": str(self.configuration)}
        subprocess.run([*command, *pins], env=environment, check=True, capture_output=True)
        self.write_pin(label, self.pins[label])

    def write_pin(self, label: str, pin: str) -> None:
        path = self.pin_directory / f"{label}.pin"
        path.touch(mode=0o600)
        path.write_text(pin + "\n")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "WALLET_PKCS11_LIBRARY": str(self.library),
            "WALLET_TOKEN_PIN_DIR": str(self.pin_directory),
            "SOFTHSM2_CONF": str(self.configuration),
        }

    @property
    def external(self) -> ExternalTokens:
        external = ExternalTokens.from_environment(self.environment)
        assert external is not None
        return external


@pytest.fixture
def vault(tmp_path: Path) -> TokenVault:
    return TokenVault(tmp_path / "vault")


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="goldenlink-external-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_a_transfer_ends_on_real_ones_and_down_leaves_them_running(
    directory: Path,
    own_postgres: Callable[[], OwnPostgres],
    redis_apart: str,
    vault: TokenVault,
    nodes: tuple[str, list[GuardedNode]],
) -> None:
    chain, guarded = nodes
    for label in TOKENS:
        vault.make(label)
    with own_postgres() as database:
        external = External.from_environment(
            {
                "WALLET_DATABASE_URL": with_password(database.server),
                "WALLET_REDIS_URL": redis_apart,
                "WALLET_NODES": as_json([node.address for node in guarded]),
                **vault.environment,
            }
        )
        stack = Stack(directory / "stack", StackOptions(supervised=True, external=external))
        run_to_end(stack.start())
        try:
            assert {process["name"] for process in stack.record["processes"]} == set(SERVICE_NAMES)
            hidden = [
                str(database.server.password),
                redis_apart.partition("@")[0].rpartition(":")[2],
                *vault.pins.values(),
                *(node.secret for node in guarded),
            ]
            with RedisMonitor(redis_apart) as monitor:
                make_transfer(stack, chain)
            assert b"nonce:" in monitor.seen
            assert all(node.answered for node in guarded)
            assert in_command_lines(hidden) == []
            assert in_readable_files(directory, hidden) == []
            assert in_logs(stack, hidden) == []
        finally:
            command = [sys.executable, "-m", "tools.stack", "down", "--json", "--directory", str(stack.directory)]
            down = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
            run_to_end(stack.stop())
        assert set(json.loads(down.stdout)["ended"]) == set(SERVICE_NAMES)
        # All four are there, with what was in them before and what the suite has left.
        with redis.Redis.from_url(redis_apart) as client:
            assert client.get("stranger") == b"here before"
        assert DevelopmentChain(chain).call("eth_chainId") == hex(31337)
        assert database.execute("SELECT state FROM gateway.transfers") == "FINALIZED"
        for label in TOKENS:
            existing_token(vault.external, label)
        # Each start is from nothing: what an earlier one left is not taken for a new log.
        again = Stack(directory / "again", StackOptions(supervised=True, external=external))
        with pytest.raises(StackError, match="holds an earlier suite"):
            run_to_end(again.start())
        assert ProcessTable(run_directory(again.directory)).living() == []


def make_transfer(stack: Stack, chain: str) -> None:
    """To finality; its proof names the real nodes and the real token."""
    # Where accounts are funded: the stack does not know that these nodes have a development chain behind them.
    stack.foundation.chain_url = chain
    suite = Suite(stack)
    ended = suite.finalized(suite.make_account(), to=somebody())
    report = suite.proves(ended)
    assert report.accepted, report
    bodies = [entry["body"] for entry in suite.link(ended)["entries"]]
    assert {body["node"] for body in bodies if "node" in body} <= {"real-a", "real-b", "real-c"}
    assert [body["token"]["label"] for body in bodies if "token" in body] == ["signer"]
    assert suite.chain.call("eth_getTransactionReceipt", ended["tx_hash"])["status"] == "0x1"
    environments = [json.loads(path.read_text()) for path in (stack.directory / "environments").iterdir()]
    libraries = {variables["WALLET_PKCS11_LIBRARY"] for variables in environments if "WALLET_TOKEN_LABEL" in variables}
    assert libraries == {str(stack.options.external.tokens.library)}  # type: ignore[union-attr]
    # A public node's pool does not bear what the development chain's does.
    assert not any("WALLET_MAX_IN_FLIGHT" in variables for variables in environments)


def as_json(addresses: list[NodeAddress]) -> str:
    return json.dumps([{"name": a.name, "url": a.url, "chain_id": a.chain_id} for a in addresses])


def with_password(server: DatabaseServer) -> str:
    return server.url.replace("postgres@", f"postgres:{server.password}@")


def in_command_lines(hidden: list[str]) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        found += [f"{path}: {text!r}" for secret in hidden if secret.encode() in text]
    return found


def in_readable_files(directory: Path, hidden: list[str]) -> list[Path]:
    """Files of the stack that hold a secret and that others than their owner can read."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    return [path for path in files if any(secret.encode() in path.read_bytes() for secret in hidden)]


def in_logs(stack: Stack, hidden: list[str]) -> list[Path]:
    logs = list((stack.directory / "logs").iterdir())
    assert logs
    return [path for path in logs if any(secret.encode() in path.read_bytes() for secret in hidden)]


# What is not as it should be is named before anything is started, and no secret is quoted


def test_a_token_that_is_not_there_or_refuses_its_pin_is_named(vault: TokenVault, tmp_path: Path) -> None:
    vault.make("signer")
    existing_token(vault.external, "signer")
    vault.write_pin("keys", "1234")
    with pytest.raises(StackError, match=r"token 'keys' of .*libhsm.so: .*NoSuchToken"):
        existing_token(vault.external, "keys")
    with pytest.raises(StackError, match=r"put the PIN of token 'evidence' in .*evidence.pin"):
        existing_token(vault.external, "evidence")
    vault.write_pin("signer", "not the PIN")
    with pytest.raises(StackError, match=r"token 'signer' of .*: .*PinIncorrect") as refused:
        existing_token(vault.external, "signer")
    assert "not the PIN" not in str(refused.value)
    with pytest.raises(StackError, match="there is no file"):
        ExternalTokens.from_environment({**vault.environment, "WALLET_PKCS11_LIBRARY": str(tmp_path / "none.so")})
    with pytest.raises(StackError, match="WALLET_TOKEN_PIN_DIR"):
        ExternalTokens.from_environment({"WALLET_PKCS11_LIBRARY": str(vault.library)})
    vault.library.write_bytes(b"no library")
    with pytest.raises(StackError, match=r"token 'signer' of .*libhsm.so"):
        existing_token(vault.external, "signer")


async def test_a_redis_that_does_not_answer_or_refuses_the_password_is_named(
    redis_apart: str, dependencies: Dependencies
) -> None:
    await check_redis(redis_apart)
    password, _, place = redis_apart.removeprefix("redis://:").partition("@")
    port = dependencies.ports.free()
    for url in (
        f"redis://:{password}-wrong@{place}",
        f"redis://{place}",
        f"redis://:{password}@127.0.0.1:{port}/0",
        f"http://:{password}@{place}",
        f"redis://:{password}@127.0.0.1:{password}/0",
    ):
        with pytest.raises(StackError, match="WALLET_REDIS_URL") as refused:
            await check_redis(url)
        assert password not in str(refused.value)


async def test_a_node_that_refuses_or_serves_another_chain_is_named(
    nodes: tuple[str, list[GuardedNode]], tmp_path: Path
) -> None:
    _, guarded = nodes
    good = [node.address for node in guarded]
    await check_nodes(write_nodes_file(tmp_path / "nodes.json", good))
    secret = guarded[2].secret
    wrong = {
        "real-c: the node answers with an HTTP error .401.": NodeAddress("real-c", f"{good[2].url}0", CHAIN_ID),
        "real-c: the node serves another chain": NodeAddress("real-c", good[2].url, "eip155:1"),
        "real-c: the node gives no HTTP answer": NodeAddress("real-c", f"http://127.0.0.1:1/{secret}", CHAIN_ID),
        "names a node twice": NodeAddress("real-a", good[2].url, CHAIN_ID),
        "begins with http": NodeAddress("real-c", f"ws://127.0.0.1/{secret}", CHAIN_ID),
    }
    for told, address in wrong.items():
        with pytest.raises(StackError, match=f"WALLET_NODES: .*{told}") as refused:
            await check_nodes(write_nodes_file(tmp_path / "nodes.json", [*good[:2], address]))
        assert secret not in str(refused.value)
    assert secret not in repr(External(nodes=tuple(good)))


async def test_a_wrong_one_stops_the_start_and_leaves_nothing(directory: Path, redis_apart: str) -> None:
    external = External(redis_url=redis_apart.replace("@", "-wrong@"))
    stack = Stack(directory / "stack", StackOptions(services=(), supervised=True, external=external))
    with pytest.raises(StackError, match="WALLET_REDIS_URL"):
        await stack.start()
    assert ProcessTable(run_directory(stack.directory)).names() == []
