"""The whole embedded stack as its tests use it: over HTTP, with a chain to fund accounts on and processes to kill."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx

from services.core.addresses import Address, checksum_address
from tools.demo.chain import DevelopmentChain
from tools.goldenlink.following import ENDED
from tools.stack.processes import ProcessSpec
from tools.stack.services import SERVICES
from tools.stack.stack import Stack
from tools.verify import Report, load_trust, verify_bundle

ROOT = Path(__file__).resolve().parents[3]
CHAIN_ID = "eip155:31337"
DEADLINE_S = 60.0
_POLL_S = 0.1

T = TypeVar("T")


@dataclass
class Suite:
    """A started stack. `operator` is an HTTP client with the operator's token."""

    stack: Stack
    operator: httpx.Client = field(init=False)
    chain: DevelopmentChain = field(init=False)
    _otherwise: dict[str, ProcessSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.operator = self.client(self.stack.api_token_file("operator"))
        assert self.stack.foundation.chain_url is not None
        self.chain = DevelopmentChain(self.stack.foundation.chain_url)

    # Who asks

    def client(self, token_file: Path, local_address: str = "127.0.0.1") -> httpx.Client:
        """A client with the token in this file, that connects from this address."""
        return httpx.Client(
            base_url=self.stack.gateway_url,
            headers={"Authorization": f"Bearer {token_file.read_text(encoding='utf-8').strip()}"},
            transport=httpx.HTTPTransport(local_address=local_address),
            timeout=30.0,
            trust_env=False,
        )

    def make_token(self, name: str, role: str, *, expires_in_days: int = 1, public_key: Path | None = None) -> Path:
        """The file of a new API token, made as an operator of the machine makes one."""
        out = self.stack.directory / "secrets" / f"api-token-{secrets.token_hex(4)}"
        gateway = next(service for service in SERVICES if service.name == "gateway")
        subprocess.run(
            [
                *(sys.executable, "-m", "services.gateway", "token", "create", "--name", name, "--role", role),
                *("--expires-in-days", str(expires_in_days), "--out", str(out)),
                *(("--public-key", str(public_key)) if public_key else ()),
            ],
            env=self.stack.foundation.owner_environment(gateway),
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        return out

    # What is asked

    def make_account(self, ether: int = 100, *, index: int = 0, **wallet: Any) -> dict[str, Any]:
        """An account of a new wallet, with so much on it."""
        wallet = {"id": f"w-{secrets.token_hex(8)}", "name": "tests", **wallet}
        made = self._patiently(lambda: self.operator.post("/v1/wallets", json=wallet))
        body = {"chain_id": CHAIN_ID, "index": index}
        account: dict[str, Any] = self._patiently(
            lambda: self.operator.post(f"/v1/wallets/{made['id']}/accounts", json=body)
        )
        if ether:
            self.chain.fund(account["address"], ether)
        return account

    def post(self, body: Any, key: str | None = None, *, http: httpx.Client | None = None, **headers: str) -> Any:
        """The answer to `POST /v1/transfers`, whatever it is."""
        sent = {"Idempotency-Key": key or secrets.token_hex(8), **headers}
        return (http or self.operator).post("/v1/transfers", json=body, headers=sent)

    def send(self, account: dict[str, Any], **body: Any) -> dict[str, Any]:
        """An accepted transfer; by default one wei to somebody."""
        if not body.keys() & {"data", "call", "erc20"}:
            body = {"to": somebody(), "value_wei": "1", **body}
        key = secrets.token_hex(8)
        return self._patiently(lambda: self.post({"account_id": account["id"], **body}, key))

    def send_batch(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        key = {"Idempotency-Key": secrets.token_hex(8)}
        made = self._patiently(
            lambda: self.operator.post("/v1/transfers:batch", json={"transfers": bodies}, headers=key)
        )
        return list(made["transfers"])

    def _patiently(self, send: Callable[[], httpx.Response]) -> dict[str, Any]:
        """What a good client does: 503 says to try again, and each of these requests may be repeated."""
        reply = until(lambda: answer if (answer := send()).status_code != 503 else None, "it is accepted", 10.0)
        assert reply.is_success, reply.text
        return dict(reply.json())

    # What becomes of it

    def get(self, path: str) -> Any:
        return self._patiently(lambda: self.operator.get(path))

    def transfer(self, transfer_id: str) -> dict[str, Any]:
        return dict(self.get(f"/v1/transfers/{transfer_id}"))

    def until_state(self, transfer: dict[str, Any], *states: str) -> dict[str, Any]:
        """The transfer once it is in one of these states; by default once it has ended."""
        wanted = states or ENDED

        def look() -> dict[str, Any] | None:
            now = self.transfer(transfer["id"])
            assert now["state"] not in ENDED - set(wanted), now
            return now if now["state"] in wanted else None

        return until(look, f"{transfer['id']} is {' or '.join(wanted)}")

    def until_ended(self, transfers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self.until_state(transfer) for transfer in transfers]

    def finalized(self, account: dict[str, Any], **body: Any) -> dict[str, Any]:
        """A transfer, sent and followed to finality."""
        ended = self.until_state(self.send(account, **body))
        assert ended["state"] == "FINALIZED", ended
        return ended

    def link(self, transfer: dict[str, Any]) -> dict[str, Any]:
        return dict(self.get(f"/v1/links/{transfer['id']}"))

    def bundle(self, transfer: dict[str, Any]) -> bytes:
        path = f"/v1/links/{transfer['id']}/bundle"
        reply = until(lambda: answer if (answer := self.operator.get(path)).status_code != 503 else None, path, 10.0)
        return reply.raise_for_status().content

    def proves(self, transfer: dict[str, Any]) -> Report:
        """What the stand-alone verifier says to its bundle, with the stack's own trust file."""
        return verify_bundle(self.bundle(transfer), load_trust(self.stack.trust_file.read_bytes()))

    def database(self, sql: str) -> str:
        """What the database's superuser is told."""
        return self.stack.foundation.database.execute(sql)

    # What befalls it

    def kill(self, name: str) -> None:
        asyncio.run(self.stack.kill(name))

    def launch(self, name: str) -> None:
        asyncio.run(self.stack.launch(name))

    def restart(self, name: str) -> None:
        asyncio.run(self.stack.restart(name))

    def launch_otherwise(self, name: str, **environment: str) -> None:
        """Start a killed service with other variables, and return when it serves or has ended; `heal` undoes it."""
        spec = self.stack._specs[name]
        self._otherwise.setdefault(name, spec)

        async def ready() -> bool:
            return await spec.ready() or self.stack._table.has_ended(name)

        changed = replace(spec, environment={**spec.environment, **environment}, ready=ready)
        asyncio.run(self.stack._launch(changed))

    def children(self, name: str) -> list[int]:
        """Pids of the children of a process of the stack."""
        pid = self.stack.pid(name)
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def set_fault(self, node: str, **fault: Any) -> None:
        httpx.put(f"{self._control_url}/nodes/{node}/fault", json=fault, trust_env=False).raise_for_status()

    def clear_faults(self) -> None:
        for node in self.stack.record["node_urls"]:
            httpx.delete(f"{self._control_url}/nodes/{node}/fault", trust_env=False).raise_for_status()

    @property
    def _control_url(self) -> str:
        return str(self.stack.record["node_control_url"])

    def heal(self) -> None:
        """Start what a test left killed or changed, and make the nodes honest again."""
        for name, spec in self._otherwise.items():
            self.kill(name)
            self.stack._specs[name] = spec
        self._otherwise.clear()
        for name in ("postgres", "redis", "anvil", "nodes", *(service.name for service in SERVICES)):
            if not self.stack._table.is_alive(name):
                self.launch(name)
        self.clear_faults()

    def log_lines(self, service: str) -> list[dict[str, Any]]:
        """What a service has logged. Raises ValueError where it printed anything else."""
        text = Path(self.stack.record["services"][service]["log"]).read_text(encoding="utf-8")
        return [_record(service, line) for line in text.splitlines()]


def _record(service: str, line: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        raise ValueError(f"{service} printed what is no log record: {line}") from None
    return record


def until(look: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """The first answer of `look` that is neither None nor False."""
    give_up_at = time.monotonic() + deadline_s
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < give_up_at, f"not within {deadline_s:g} s: {what}"
        time.sleep(_POLL_S)


def somebody() -> str:
    """A fresh receiver, with its checksum."""
    return checksum_address(Address(secrets.token_bytes(20)))
