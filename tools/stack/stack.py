"""A stack: start what the services stand on, then the services in order; kill, restart, end."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tools.stack.files import write_json
from tools.stack.foundation import Foundation
from tools.stack.nodes import SOURCE_TREE
from tools.stack.options import StackOptions
from tools.stack.processes import ProcessSpec, ProcessTable, StackError, log_tail
from tools.stack.readiness import evidence_verifier_key, serves_grpc, serves_http
from tools.stack.services import ROLES, SERVICES, Replica, Service, replica_name, service_of
from tools.stack.shutdown import end_stack, locked, record_file, run_directory
from tools.stack.supervisor import Supervisor

DEFAULT_DIRECTORY = SOURCE_TREE / "build" / "stack"
_PRIVATE_DIRECTORIES = ("environments", "evidence", "logs", "nodes", "redis", "run", "secrets", "tls", "tokens")
_COMMAND_TIMEOUT_S = 120.0

# A process: by its name, or a replica of a service by its index. `"signer"` is `("signer", 0)`.
Process = str | tuple[str, int]


class Stack:
    """`async with Stack(directory, options) as stack:` or start() and stop().

    Each start is from nothing: the directory of an earlier stack is removed, its logs too.
    """

    def __init__(self, directory: Path = DEFAULT_DIRECTORY, options: StackOptions | None = None) -> None:
        self.directory = directory.resolve()
        self.options = options or StackOptions()
        self.record: dict[str, Any] = {}
        self._table = ProcessTable(run_directory(self.directory))
        self._specs: dict[str, ProcessSpec] = {}
        self._serving = {service.name: asyncio.Event() for service in SERVICES}
        self._supervisor: Supervisor | None = None

    async def start(self) -> None:
        """Return when everything serves.

        Raises:
            StackError: it runs already, or something did not start; then nothing is left running.
        """
        with locked(self.directory, wait=False):
            if living := self._table.living():
                raise StackError(f"this stack runs already ({', '.join(living)}): end it with 'make down'")
            shutil.rmtree(self.directory, ignore_errors=True)
            # PostgreSQL's user passes through; all else in it is closed.
            self.directory.mkdir(mode=0o711, parents=True)
            for name in _PRIVATE_DIRECTORIES:
                (self.directory / name).mkdir(mode=0o700)
            self._supervisor = Supervisor(self.directory)
            try:
                await self._start()
            except BaseException:
                await asyncio.to_thread(end_stack, self.directory, self._table)
                self._supervisor.release()
                raise
            if not self.options.supervised:
                self._supervisor.release()

    async def stop(self) -> None:
        """End everything that runs; the directory with its logs stays."""
        with locked(self.directory, wait=True):
            await asyncio.to_thread(end_stack, self.directory, self._table)
        if self._supervisor is not None and self.options.supervised:
            self._supervisor.release()

    async def __aenter__(self) -> Stack:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        await self.stop()

    @property
    def foundation(self) -> Foundation:
        return self._foundation

    def pid(self, process: Process) -> int:
        """Raises StackError when it does not run."""
        identity = self._table.identity(_name(process))
        if identity is None or not identity.is_alive():
            raise StackError(f"{_name(process)} does not run")
        return identity.pid

    def is_running(self, process: Process) -> bool:
        return self._table.is_alive(_name(process))

    async def kill(self, process: Process, number: signal.Signals = signal.SIGKILL) -> None:
        """End one process (by SIGKILL, as a crash would) and return when it is gone."""
        await asyncio.to_thread(self._table.end, [_name(process)], number=number)

    async def launch(self, process: Process) -> None:
        """Start a process that was killed, on the same ports, and return when it serves."""
        if self.is_running(process):
            raise StackError(f"{_name(process)} runs already")
        await self._launch(self._specs[_name(process)])
        self._write_record()

    async def restart(self, process: Process) -> None:
        """Kill and start again."""
        await self.kill(process)
        await self.launch(process)

    async def create_api_token(self, name: str, role: str) -> Path:
        """The file of a further token of `role`, whose holder the log calls `name`."""
        out = self.api_token_file(name)
        await self._create_api_token(name, role, out)
        return out

    async def _start(self) -> None:
        # (1) Files, tokens, certificates; then the databases, the chain and its nodes.
        self._foundation = Foundation(self.directory, self.options)
        await self._foundation.create()
        await _all(*(self._launch(spec) for spec in self._foundation.specs))
        await asyncio.to_thread(self._foundation.create_database_roles)
        # (2) Each service: its schema, then, when those it calls serve, itself.
        chosen = [service for service in SERVICES if service.name in self.options.services]
        for service in SERVICES:
            if service not in chosen:
                self._serving[service.name].set()
        turns = asyncio.Semaphore(os.cpu_count() or 1)
        await _all(*(self._start_service(service, turns) for service in chosen))
        # (3) What a user needs: API tokens, and whom to trust.
        if "gateway" in self.options.services:
            await _all(*(self._create_api_token(f"demo-{role}", role, self.api_token_file(role)) for role in ROLES))
        if "evidence" in self.options.services:
            await self._write_trust_file()
        self._write_record()

    async def _start_service(self, service: Service, turns: asyncio.Semaphore) -> None:
        async with turns:
            await self._run(
                f"{service.name}-migrate",
                # What `python -m services.<name> migrate` does, without loading the service.
                ["services.runtime.migrations", service.name],
                self._foundation.owner_environment(service),
            )
        for name in service.after:
            await self._serving[name].wait()
        first, *others = self._foundation.replicas[service.name]
        # The first alone: it makes the keys that all need, in its token.
        await self._launch(self._replica_spec(first))
        await asyncio.to_thread(self._foundation.share_token, service)
        await _all(*(self._launch(self._replica_spec(replica)) for replica in others))
        if service.name == "tracestore" and self._foundation.jaeger is not None:
            await _all(*(self._launch(spec) for spec in self._foundation.jaeger.specs))
        self._serving[service.name].set()

    def _replica_spec(self, replica: Replica) -> ProcessSpec:
        service, name, foundation = replica.service.name, replica.name, self._foundation
        environment = foundation.environment(replica)
        write_json(self._environment_file(name), environment)
        ports = {
            kind: _port(addresses[name])
            for kind, addresses in (
                ("grpc", foundation.addresses),
                ("http", foundation.http_addresses),
                ("tiles", foundation.tiles_addresses),
                ("metrics", foundation.metrics_addresses),
            )
            if name in addresses
        }

        async def ready() -> bool:
            if service == "gateway":
                return await serves_http(f"http://{foundation.http_addresses[name]}/readyz")
            return await serves_grpc(service, foundation.addresses[name], foundation.tls / "gateway")

        return ProcessSpec(
            name=name,
            command=(sys.executable, "-m", f"services.{service}"),
            environment=environment,
            log=self._log(name),
            ready=ready,
            ports=ports,
            working_directory=SOURCE_TREE,
        )

    async def _launch(self, spec: ProcessSpec) -> None:
        self._specs[spec.name] = spec
        await self._table.launch(spec)

    async def _run(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        """A command of a service, to its end; `name` is its log's."""
        log = self._log(name)
        with log.open("ab") as output:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                cwd=SOURCE_TREE,
            )
        try:
            async with asyncio.timeout(_COMMAND_TIMEOUT_S):
                status = await child.wait()
        except BaseException:
            if child.returncode is None:
                child.kill()
                await child.wait()
            raise
        if status != 0:
            raise StackError(f"'python -m {' '.join(arguments)}' failed:\n{log_tail(log)}")

    async def _create_api_token(self, name: str, role: str, out: Path) -> None:
        gateway = next(service for service in SERVICES if service.name == "gateway")
        await self._run(
            "gateway-token",
            ["services.gateway", "token", "create", "--name", name, "--role", role, "--out", str(out)],
            # The serving role may only check tokens; making them is its owner's right.
            self._foundation.owner_environment(gateway),
        )

    async def _write_trust_file(self) -> None:
        key = await evidence_verifier_key(self._foundation.addresses["evidence"], self._foundation.tls / "gateway")
        trust = {
            "format": "goldenlink.trust.v1",
            "evidence_keys": [key],
            "chain_ids": sorted({node.chain_id for node in self._foundation.nodes}),
            "min_agreeing_nodes": self._foundation.nodes_required,
            "ledger": None,
        }
        write_json(self.trust_file, trust)

    def _write_record(self) -> None:
        """`build/stack.json`: all that the CLI, the demo and the tests need to know."""
        foundation = self._foundation
        services = {
            replica.name: {
                "address": (foundation.addresses | foundation.http_addresses)[replica.name],
                "log": str(self._log(replica.name)),
                "environment_file": str(self._environment_file(replica.name)),
            }
            for service in SERVICES
            if service.name in self.options.services
            for replica in foundation.replicas[service.name]
        }
        tiles_urls = [f"http://{address}" for address in foundation.tiles_addresses.values()]
        self.record = {
            "directory": str(self.directory),
            "processes": [
                {
                    "name": name,
                    "service": service_of(name) or name,
                    "pid": identity.pid,
                    "ports": dict(self._specs[name].ports),
                }
                for name in self._specs
                if (identity := self._table.identity(name)) is not None
            ],
            "gateway_url": self.gateway_url,
            "gateway_urls": self.gateway_urls,
            "token_files": {role: str(self.api_token_file(role)) for role in ROLES},
            "node_urls": {node.name: node.url for node in foundation.nodes},
            "nodes_file": str(foundation.nodes_file),
            "node_control_url": foundation.control_url,
            "chain_url": foundation.chain_url,
            "database_url": foundation.database.url,
            "database_password_file": str(foundation.database_password_file),
            "redis_url_file": str(foundation.redis_url_file),
            "tls_dir": str(foundation.tls),
            "policy_file": str(foundation.policy_file),
            "services": services,
            "tiles_url": tiles_urls[0],
            "tiles_urls": tiles_urls,
            "metrics_urls": {
                name: f"http://{address}/metrics" for name, address in foundation.metrics_addresses.items()
            },
            "trust_file": str(self.trust_file),
            "jaeger": foundation.jaeger.record() if foundation.jaeger is not None else None,
        }
        write_json(record_file(self.directory), self.record)

    @property
    def gateway_url(self) -> str:
        """Of the first gateway."""
        return self.gateway_urls[0]

    @property
    def gateway_urls(self) -> list[str]:
        return [f"http://{address}" for address in self._foundation.http_addresses.values()]

    @property
    def trust_file(self) -> Path:
        return self.directory / "trust.json"

    def api_token_file(self, holder: str) -> Path:
        """`holder` is a role, or a name of `create_api_token`."""
        return self.directory / "secrets" / f"api-token-{holder}"

    def _log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}.jsonl"

    def _environment_file(self, name: str) -> Path:
        return self.directory / "environments" / f"{name}.json"


def read_record(directory: Path = DEFAULT_DIRECTORY) -> dict[str, Any]:
    """The record of a running stack.

    Raises:
        StackError: none was started, or it was ended.
    """
    try:
        document = json.loads(record_file(directory).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StackError("no stack runs: start one with 'make up'") from None
    assert isinstance(document, dict)
    return document


async def _all(*steps: Any) -> None:
    """Run steps together; the first failure cancels the rest and is raised alone."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _name(process: Process) -> str:
    return process if isinstance(process, str) else replica_name(*process)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
