"""What the services stand on: databases, lock server, tokens, nodes, certificates, keys; and who gets what."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import yaml

from services.runtime.mtls import read_callers
from tools.stack.authority import Authority
from tools.stack.chain import CHAIN_ID, EmbeddedChain
from tools.stack.files import write_private
from tools.stack.jaeger import COLLECTOR, COLLECTORS, QUERIES, QUERY, EmbeddedJaeger
from tools.stack.nodes import SOURCE_TREE, EmbeddedNodes, NodeAddress, check_nodes, write_nodes_file
from tools.stack.options import StackOptions
from tools.stack.ports import Ports
from tools.stack.postgres import (
    DatabaseServer,
    EmbeddedPostgres,
    ServiceRoles,
    check_empty,
    create_roles,
    create_schemas,
)
from tools.stack.processes import ProcessSpec
from tools.stack.redis_server import EmbeddedRedis, check_redis
from tools.stack.services import SERVICE_NAMES, SERVICES, Replica, Service
from tools.stack.tokens import Token, clone_token, create_softhsm_token, existing_token

CALLERS_FILE = SOURCE_TREE / "services" / "callers.yaml"
_DEVELOPMENT_POLICY = SOURCE_TREE / "services" / "signer" / "default_policy.yaml"
_SWAGGER_UI = SOURCE_TREE / "node_modules" / "swagger-ui-dist"
_KEY_BYTES = 32
# Of one process of a service, and of whoever else looks in.
_CONNECTIONS, _OTHER_CONNECTIONS = 5, 65


class Foundation:
    """Creates files and tokens at once; `specs` are the processes to start before `create_database_roles`."""

    def __init__(self, directory: Path, options: StackOptions) -> None:
        self._directory = directory
        self._options = options
        self._secrets = directory / "secrets"
        listed = yaml.safe_load(CALLERS_FILE.read_text(encoding="utf-8"))
        self._callers = {service: read_callers(entries) for service, entries in listed.items()}
        self._roles: dict[str, ServiceRoles] = {}
        self._tokens: dict[str, Token] = {}
        self.specs: list[ProcessSpec] = []
        self.tls = directory / "tls"
        self.ports = Ports()
        self.replicas = {service.name: options.replicas_of(service) for service in SERVICES}
        # By replica. gRPC; gateway speaks HTTP only.
        self.addresses = {
            name: address for name in SERVICE_NAMES if name != "gateway" for name, address in self._listen(name)
        }
        self.http_addresses = dict(self._listen("gateway"))
        self.tiles_addresses = dict(self._listen("evidence"))
        self.metrics_addresses = (
            {name: address for service in SERVICE_NAMES for name, address in self._listen(service)}
            if options.metrics
            else {}
        )
        self.policy_file = directory / "policy.yaml"
        self.control_url: str | None = None
        self.chain_url: str | None = None
        # Its processes start once tracestore serves.
        self.jaeger: EmbeddedJaeger | None = None

    async def create(self) -> None:
        """Raises StackError when something is not installed, or an external one is not as it should be."""
        database, *_ = await asyncio.gather(
            asyncio.to_thread(self._create_database),
            asyncio.to_thread(self._create_tokens),
            asyncio.to_thread(self._create_certificates),
        )
        self.database: DatabaseServer = database
        self.redis_url_file = write_private(self._secrets / "redis-url", await self._create_redis() + "\n")
        if self._options.jaeger:
            self.jaeger = await asyncio.to_thread(self._create_jaeger)
        self.nodes = self._create_nodes()
        self.nodes_file = write_nodes_file(self._secrets / "nodes.json", self.nodes)
        if self._options.external.nodes is not None:
            await check_nodes(self.nodes_file)
        # A copy: a running suite does not follow edits of the tree.
        policy = self._options.policy_file or _DEVELOPMENT_POLICY
        write_private(self.policy_file, policy.read_bytes())
        self._telemetry_key = self._create_key("telemetry-hmac-key")
        self._gateway_key = self._create_key("gateway-encryption-key")
        if self.database.password is not None:
            write_private(self.database_password_file, self.database.password + "\n")

    def create_database_roles(self) -> None:
        """Once the database serves."""
        self._roles = create_roles(self.database, SERVICE_NAMES, self._secrets)
        create_schemas(self.database, SERVICE_NAMES)

    @property
    def database_password_file(self) -> Path:
        return self._secrets / "database-password"

    def _log(self, name: str) -> Path:
        return self._directory / "logs" / f"{name}.log"

    def _create_database(self) -> DatabaseServer:
        if self._options.external.database_url is not None:
            server = DatabaseServer.from_url(self._options.external.database_url)
            check_empty(server, SERVICE_NAMES)
            return server
        processes = sum(map(len, self.replicas.values()))
        embedded = EmbeddedPostgres(
            self._directory / "postgres", self._log("postgres"), _CONNECTIONS * processes + _OTHER_CONNECTIONS
        )
        self.specs.append(embedded.spec)
        return embedded.server

    async def _create_redis(self) -> str:
        if self._options.external.redis_url is not None:
            await check_redis(self._options.external.redis_url)
            return self._options.external.redis_url
        embedded = EmbeddedRedis(self._directory / "redis", self._log("redis"), self.ports.free())
        self.specs.append(embedded.spec)
        return embedded.url

    def _create_jaeger(self) -> EmbeddedJaeger:
        stores = [self.addresses[replica.name] for replica in self.replicas["tracestore"]]
        return EmbeddedJaeger(self._directory / "jaeger", self._log, self.tls, self.ports, stores)

    def _create_nodes(self) -> list[NodeAddress]:
        if self._options.external.nodes is not None:
            return list(self._options.external.nodes)
        options = self._options
        chain = EmbeddedChain(self._log("anvil"), self.ports.free(), options.block_time_s, options.slots_in_an_epoch)
        nodes = EmbeddedNodes(self._directory / "nodes", self._log("nodes"), chain.url, CHAIN_ID, self.ports)
        self.chain_url, self.control_url = chain.url, nodes.control_url
        self.specs += [chain.spec, nodes.spec]
        return nodes.addresses

    def _create_tokens(self) -> None:
        for service in SERVICES:
            if service.tokens is not None:
                self._tokens[service.name] = self._create_token(service.name)
            if service.tokens == "own keys":
                for replica in self.replicas[service.name][1:]:
                    self._tokens[replica.name] = self._create_token(replica.name)

    def share_token(self, service: Service) -> None:
        """Once the first replica serves, and so has made its keys: give them to the others."""
        if service.tokens == "same keys":
            first = self._tokens[service.name]
            for replica in self.replicas[service.name][1:]:
                external = self._options.external.tokens is not None
                self._tokens[replica.name] = (
                    first if external else clone_token(first, self._directory / "tokens" / replica.name)
                )

    def _create_token(self, label: str) -> Token:
        if self._options.external.tokens is not None:
            return existing_token(self._options.external.tokens, label)
        return create_softhsm_token(self._directory / "tokens" / label, label)

    def _create_certificates(self) -> None:
        authority = Authority(self.tls)
        for name in sorted({*SERVICE_NAMES, *(caller for allowed in self._callers.values() for caller in allowed)}):
            authority.issue(name)
        for replicas in self.replicas.values():
            for replica in replicas[1:]:
                authority.issue(replica.service.name, replica.name)
        for service, names in ((COLLECTOR, COLLECTORS), (QUERY, QUERIES)):
            for name in names:
                authority.issue(service, name)

    def _create_key(self, name: str) -> Path:
        return write_private(self._secrets / name, secrets.token_bytes(_KEY_BYTES))

    @property
    def peers(self) -> dict[str, str]:
        """Service → gRPC target: the address, or all of them (gRPC Name Resolution, `ipv4:`)."""
        addresses = {
            name: [self.addresses[replica.name] for replica in replicas]
            for name, replicas in self.replicas.items()
            if name != "gateway"
        }
        return {name: all_[0] if len(all_) == 1 else f"ipv4:{','.join(all_)}" for name, all_ in addresses.items()}

    def environment(self, replica: Replica) -> dict[str, str]:
        """All that a process is told. Nothing of our own environment but where programs and temporary files are."""
        service, peers = replica.service, self.peers
        private = self._secrets / replica.name
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
        variables = {
            **inherited(os.environ),
            "WALLET_ENV": "development",
            "WALLET_TLS_DIR": str(self.tls / replica.name),
            "WALLET_CALLERS": str(CALLERS_FILE),
            "WALLET_PEERS": json.dumps(peers),
            "WALLET_DATABASE_URL": self.database.role_url(service.name),
            "WALLET_DATABASE_PASSWORD_FILE": str(self._roles[service.name].password_file),
            "WALLET_SECRETS_DIR": str(private),
            "WALLET_TELEMETRY_HMAC_KEY_FILE": str(self._telemetry_key),
            "WALLET_NODES_REQUIRED": str(self.nodes_required),
            "OTEL_SERVICE_NAME": service.name,
        }
        if self._options.tracing and service.name in self._callers["tracestore"]:
            variables |= self._tracing_variables(replica)
        elif not self._options.metrics:
            variables["OTEL_SDK_DISABLED"] = "true"
        if replica.name in self.metrics_addresses:
            variables["WALLET_METRICS_LISTEN"] = self.metrics_addresses[replica.name]
        if replica.name in self.addresses:
            variables["WALLET_LISTEN"] = self.addresses[replica.name]
        if service.tokens is not None:
            variables |= self._tokens[replica.name].environment()
        if service.redis:
            variables["WALLET_REDIS_URL_FILE"] = str(self.redis_url_file)
        if service.nodes:
            variables["WALLET_NODES_FILE"] = str(self.nodes_file)
        return variables | self._own_variables(replica) | dict(self._options.environment.get(service.name, {}))

    def _tracing_variables(self, replica: Replica) -> dict[str, str]:
        """Where its spans go, and where those of signatures wait."""
        spool = {"WALLET_SPOOL_DIR": str(self._directory / "spool" / replica.name)}
        if self.jaeger is not None:
            return spool | self.jaeger.environment(SERVICE_NAMES.index(replica.service.name) + replica.index)
        single = len(self.replicas["tracestore"]) == 1
        return spool | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"{'https://' if single else ''}{self.peers['tracestore']}"}

    def _own_variables(self, replica: Replica) -> dict[str, str]:
        """What one service only is told."""
        match replica.service.name:
            case "gateway":
                return {
                    "WALLET_HTTP_LISTEN": self.http_addresses[replica.name],
                    "WALLET_GATEWAY_ENCRYPTION_KEY_FILE": str(self._gateway_key),
                    **({"WALLET_DOCS_ASSETS_DIR": str(_SWAGGER_UI)} if _SWAGGER_UI.is_dir() else {}),
                }
            case "evidence":
                return {
                    "WALLET_TILES_LISTEN": self.tiles_addresses[replica.name],
                    # One for all replicas: whoever takes the log over compares with it.
                    "WALLET_CHECKPOINT_FILE": str(self._directory / "evidence" / "checkpoint"),
                }
            case "signer":
                return {
                    "WALLET_POLICY_FILE": str(self.policy_file),
                    "WALLET_SIGNER_WORKERS": str(self._options.signer_workers),
                }
            case "broadcaster" if self._options.external.nodes is None:
                return {"WALLET_MAX_IN_FLIGHT": str(self._options.max_in_flight)}
        return {}

    def owner_environment(self, service: Service) -> dict[str, str]:
        """For `migrate`: the owner role's password on top."""
        owner = {"WALLET_DATABASE_OWNER_PASSWORD_FILE": str(self._roles[service.name].owner_password_file)}
        return self.environment(Replica(service)) | owner

    @property
    def nodes_required(self) -> int:
        """2, or 1 where a chain has one node only."""
        return min(2, *Counter(node.chain_id for node in self.nodes).values())

    def _listen(self, service: str) -> list[tuple[str, str]]:
        """A free address for each replica."""
        return [(replica.name, f"127.0.0.1:{self.ports.free()}") for replica in self.replicas[service]]


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of our environment that a child may see."""
    names = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "TZ")
    return {name: environment[name] for name in names if name in environment}
