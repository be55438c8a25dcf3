"""The embedded stack without its services: what it promises about secrets, identity and leaving nothing behind."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tools.stack.options import External, StackOptions
from tools.stack.postgres import DatabaseServer
from tools.stack.processes import ProcessSpec, ProcessTable, StackError
from tools.stack.services import SERVICE_NAMES
from tools.stack.shutdown import end_stack, run_directory
from tools.stack.stack import Stack, read_record
from tools.stack.tokens import Token, clone_token, create_softhsm_token

ROOT = Path(__file__).resolve().parents[2]
FOUNDATION = {"postgres", "redis", "anvil", "nodes"}
NOTHING_REAL = External()


def options(**changes: Any) -> StackOptions:
    return StackOptions(**{"services": (), "supervised": True, "external": NOTHING_REAL, **changes})


@pytest.fixture(scope="module")
def directories() -> Iterator[Path]:
    """Not pytest's temporary directory: every test run that starts closes that to PostgreSQL's user."""
    made = Path(tempfile.mkdtemp(prefix="goldenlink-stack-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def directory(directories: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=directories))


@pytest.fixture(scope="module")
def stack(directories: Path) -> Iterator[Stack]:
    started = Stack(directories / "stack", options())
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(started.start())
        yield started
        runner.run(started.stop())


async def rpc(url: str, body: object) -> tuple[int, str | None, bytes]:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
        session.post(url, data=json.dumps(body).encode(), headers={"content-type": "application/json"}) as response,
    ):
        return response.status, response.headers.get("x-node-id"), await response.read()


def call(method: str, *params: object, number: int = 1) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}


async def set_fault(stack: Stack, node: str, fault: dict[str, object]) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.put(f"{stack.record['node_control_url']}/nodes/{node}/fault", json=fault) as response,
    ):
        return response.status


@pytest.fixture
async def honest_nodes(stack: Stack) -> Any:
    yield
    async with aiohttp.ClientSession() as session:
        for node in stack.record["node_urls"]:
            (await session.delete(f"{stack.record['node_control_url']}/nodes/{node}/fault")).release()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until_gone(pids: list[int], timeout_s: float = 30.0) -> list[int]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and any(map(is_alive, pids)):
        time.sleep(0.05)
    return [pid for pid in pids if is_alive(pid)]


def shared_memory(pids: list[int]) -> list[str]:
    """System V segments that one of these processes created (/proc/sysvipc/shm, field cpid)."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return [line for line in lines if int(line.split()[4]) in pids]


def test_record_is_private_and_tells_what_runs(stack: Stack) -> None:
    path = Path(f"{stack.directory}.json")
    assert path.stat().st_mode & 0o777 == 0o600
    record = read_record(stack.directory)
    assert {process["service"] for process in record["processes"]} == FOUNDATION
    assert all(is_alive(process["pid"]) for process in record["processes"])
    assert set(record["node_urls"]) == {"node-a", "node-b", "node-c"}


def test_every_secret_file_is_private_and_none_is_an_argument_of_a_process(stack: Stack) -> None:
    files = [path for path in (stack.directory / "secrets").rglob("*") if path.is_file()]
    files += [path for name in ("pin", "so-pin") for path in (stack.directory / "tokens").rglob(name)]
    files += list((stack.directory / "tls").rglob("key.pem"))
    assert len(files) >= 2 * len(SERVICE_NAMES) + 6
    assert [path for path in files if path.stat().st_mode & 0o077] == []
    secrets = [path.read_bytes().strip() for path in files if path.suffix != ".pem" and path.name != "nodes.json"]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes()
        except OSError:
            continue
        assert not any(secret in arguments for secret in secrets), process


def test_each_role_needs_its_own_password(stack: Stack) -> None:
    server = stack.foundation.database
    secrets = stack.directory / "secrets"
    password = (secrets / "evidence" / "database-password").read_text().strip()
    as_evidence = DatabaseServer(server.url.replace("postgres@", "evidence@"), password)
    assert as_evidence.execute("SHOW fsync") == "on"
    with pytest.raises(StackError, match="permission denied"):
        as_evidence.execute("CREATE TABLE evidence.mine (n int)")
    with pytest.raises(StackError, match="password authentication failed"):
        DatabaseServer(server.url.replace("postgres@", "signer@"), password).execute("SELECT 1")
    with pytest.raises(StackError, match="password"):
        DatabaseServer(server.url, None).execute("SELECT 1")


async def test_a_second_start_is_refused_and_harms_nothing(stack: Stack) -> None:
    before = {name: stack.pid(name) for name in FOUNDATION}
    with pytest.raises(StackError, match="runs already"):
        await Stack(stack.directory, options()).start()
    assert {name: stack.pid(name) for name in FOUNDATION} == before


async def test_nodes_say_their_name_and_pass_bytes_through(stack: Stack) -> None:
    body = call("eth_getBlockByNumber", "0x0", True)
    _, nobody, from_chain = await rpc(stack.record["chain_url"], body)
    for name, url in stack.record["node_urls"].items():
        assert await rpc(url, body) == (200, name, from_chain)
    assert nobody is None


@pytest.mark.usefixtures("honest_nodes")
async def test_faults_strike_one_node_and_the_methods_they_name(stack: Stack) -> None:
    urls = stack.record["node_urls"]
    assert await set_fault(stack, "node-a", {"methods": ["eth_chainId"], "status": 503, "body": "nonsense"}) == 200
    assert await rpc(urls["node-a"], call("eth_chainId")) == (503, "node-a", b"nonsense")
    assert (await rpc(urls["node-a"], call("eth_blockNumber")))[0] == 200
    assert (await rpc(urls["node-b"], call("eth_chainId")))[0] == 200
    assert await set_fault(stack, "node-a", {"no such member": 1}) == 400


@pytest.mark.usefixtures("honest_nodes")
async def test_a_node_lies_about_one_call_of_a_batch(stack: Stack) -> None:
    await set_fault(stack, "node-c", {"results": {"eth_chainId": "0x1"}})
    batch = [call("eth_chainId", number=1), call("web3_clientVersion", number=2)]
    status, name, body = await rpc(stack.record["node_urls"]["node-c"], batch)
    results = {item["id"]: item["result"] for item in json.loads(body)}
    assert (status, name, results[1]) == (200, "node-c", "0x1")
    assert results[2].startswith("anvil")


@pytest.mark.usefixtures("honest_nodes")
async def test_a_dropped_response_leaves_its_effect_and_a_dropped_request_none(stack: Stack) -> None:
    url, address = stack.record["node_urls"]["node-b"], "0x" + "11" * 20
    for drop, balance in (("request", "0x0"), ("response", "0x7")):
        await set_fault(stack, "node-b", {"methods": ["anvil_setBalance"], "drop": drop, "times": 1})
        with pytest.raises(aiohttp.ClientError):
            await rpc(url, call("anvil_setBalance", address, "0x7"))
        _, _, body = await rpc(url, call("eth_getBalance", address, "latest"))
        assert json.loads(body)["result"] == balance
    # It applied once only.
    assert (await rpc(url, call("anvil_setBalance", address, "0x8")))[0] == 200


async def test_a_killed_database_comes_back_with_what_was_committed(stack: Stack) -> None:
    server = stack.foundation.database
    server.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (42)")
    before = stack.pid("postgres")
    await stack.kill("postgres")
    assert not is_alive(before)
    with pytest.raises(StackError, match="PostgreSQL"):
        server.execute("SELECT 1")
    await stack.launch("postgres")
    assert server.execute("SELECT n FROM kept") == "42"
    pids = {process["service"]: process["pid"] for process in read_record(stack.directory)["processes"]}
    assert pids["postgres"] == stack.pid("postgres") != before


async def test_a_real_database_takes_the_place_of_the_embedded(stack: Stack, directory: Path) -> None:
    server = stack.foundation.database.database("elsewhere")
    stack.foundation.database.execute("CREATE DATABASE elsewhere")
    url = server.url.replace("postgres@", f"postgres:{server.password}@")
    external = External.from_environment({"WALLET_DATABASE_URL": url})
    async with Stack(directory / "other", options(external=external)) as other:
        assert {process["service"] for process in other.record["processes"]} == FOUNDATION - {"postgres"}
        assert server.password is not None
        assert server.password not in json.dumps(other.record)
        schemas = server.execute("SELECT string_agg(nspname, ',' ORDER BY nspname) FROM pg_namespace")
        assert set(SERVICE_NAMES) <= set(schemas.split(","))
    with pytest.raises(StackError, match="WALLET_NODES"):
        External.from_environment({"WALLET_NODES": "https://rpc.example"})


async def test_stop_leaves_nothing(directory: Path) -> None:
    # A directory too deep for a Unix socket's path.
    stack = Stack(directory / ("deep" * 30) / "stack", options())
    await stack.start()
    pids = [process["pid"] for process in stack.record["processes"]]
    socket = stack.directory / "postgres" / "socket"
    short = socket.readlink()
    assert shared_memory(pids) != []
    await stack.stop()
    assert [pid for pid in pids if is_alive(pid)] == []
    assert shared_memory(pids) == []
    assert not short.exists()
    with pytest.raises(StackError, match="no stack runs"):
        read_record(stack.directory)


async def test_a_start_that_fails_leaves_nothing(directory: Path) -> None:
    wrong = {"tracestore": {"WALLET_DATABASE_URL": "postgresql+asyncpg://tracestore@/postgres?host=/nowhere"}}
    stack = Stack(directory / "stack", options(services=("tracestore",), environment=wrong))
    with pytest.raises(StackError, match="migrations tracestore"):
        await stack.start()
    assert ProcessTable(run_directory(stack.directory)).living() == []
    with pytest.raises(StackError, match="no stack runs"):
        read_record(stack.directory)


def test_a_killed_starter_takes_its_stack_along(directory: Path) -> None:
    program = (
        "import asyncio, pathlib, sys\n"
        "from tools.stack.options import External, StackOptions\n"
        "from tools.stack.stack import Stack\n"
        "async def main():\n"
        "    options = StackOptions(services=(), supervised=True, external=External())\n"
        "    stack = Stack(pathlib.Path(sys.argv[1]), options)\n"
        "    await stack.start()\n"
        "    print(*(process['pid'] for process in stack.record['processes']), flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(directory / "stack")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pids = [int(pid) for pid in starter.stdout.readline().split()]
        assert len(pids) == len(FOUNDATION)
        assert all(map(is_alive, pids))
        starter.send_signal(signal.SIGKILL)
    assert wait_until_gone(pids) == []
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and shared_memory(pids):
        time.sleep(0.05)
    assert shared_memory(pids) == []


def test_up_outlives_its_starter_and_down_ends_it(directory: Path) -> None:
    directory = directory / "stack"
    program = (
        "import asyncio, pathlib, sys\n"
        "from tools.stack.options import External, StackOptions\n"
        "from tools.stack.stack import Stack\n"
        "options = StackOptions(services=(), external=External())\n"
        "asyncio.run(Stack(pathlib.Path(sys.argv[1]), options).start())\n"
    )
    subprocess.run([sys.executable, "-c", program, str(directory)], cwd=ROOT, check=True)
    try:
        tool = [sys.executable, "-m", "tools.stack"]
        status = subprocess.run(
            [*tool, "status", "--json", "--directory", str(directory)], cwd=ROOT, capture_output=True, check=False
        )
        processes = json.loads(status.stdout)["processes"]
        assert status.returncode == 0
        assert {process["service"] for process in processes if process["alive"]} == FOUNDATION
        down = subprocess.run(
            [*tool, "down", "--json", "--directory", str(directory)], cwd=ROOT, capture_output=True, check=True
        )
        assert set(json.loads(down.stdout)["ended"]) == FOUNDATION
        assert wait_until_gone([process["pid"] for process in processes], 0.0) == []
        again = subprocess.run(
            [*tool, "down", "--directory", str(directory)], cwd=ROOT, capture_output=True, check=True
        )
        assert again.stdout == b"nothing was running\n"
    finally:
        end_stack(directory)


def test_a_cloned_token_has_the_same_key_and_bears_a_process_beside_the_first(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from services.runtime.settings import TokenSettings\n"
        "from services.runtime.token import TokenSession\n"
        "settings = TokenSettings(token_label='keys', token_pin_file=pathlib.Path(sys.argv[1]))\n"
        "token = TokenSession(settings)\n"
        "for _ in range(int(sys.argv[2])):\n"
        "    key = token.note_key('checkpoint').public_key\n"
        "    token.close()\n"
        "print(key.hex())\n"
    )

    def open_often(token: Token, times: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, str(token.pin_file), str(times)]
        environment = {"PATH": os.defpath, **token.environment()}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    first = create_softhsm_token(tmp_path / "keys", "keys")
    made, _ = open_often(first, 1).communicate()
    clone = clone_token(first, tmp_path / "keys-1")
    assert clone.pin_file.stat().st_mode & 0o077 == 0
    # In one directory two processes that log in again and again fail each other within a few times.
    both = [open_often(token, 50) for token in (first, clone)]
    assert [process.communicate()[0] for process in both] == [made, made] != ["", ""]


async def _ready() -> bool:
    return True


def test_a_reused_pid_is_never_signalled(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path / "run")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            stat = Path(f"/proc/{stranger.pid}/stat").read_text().split()
            stat[21] = str(int(stat[21]) - 1)
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "signer").write_text(f"{' '.join(stat)}\n{boot_id}")
            table.end(["signer"])
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_process_that_will_not_stop_is_killed_with_its_children(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path / "run")
    children = tmp_path / "children"
    script = f'trap "" TERM; sh -c \'trap "" TERM; echo $$ >{children}; sleep 60\' & while :; do sleep 60; done'
    command = ("/bin/sh", "-c", script)
    table.start(ProcessSpec("stubborn", command, {"PATH": os.defpath}, tmp_path / "log", _ready))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not (children.exists() and children.read_text()):
        time.sleep(0.02)
    pids = [int(children.read_text())]
    table.end(["stubborn"], grace_s=0.2)
    assert wait_until_gone(pids, 1.0) == []
    assert table.names() == []
