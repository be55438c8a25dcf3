"""What a caller may choose about a stack."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.stack.nodes import NodeAddress
from tools.stack.processes import StackError
from tools.stack.services import SERVICE_NAMES, Replica, Service
from tools.stack.tokens import ExternalTokens


@dataclass(frozen=True)
class External:
    """Real ones to use in place of the embedded four; each None = embedded."""

    # Superuser URL (`postgresql://user:password@host:port/database`): roles and schemas are created in its database.
    database_url: str | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    tokens: ExternalTokens | None = None
    nodes: tuple[NodeAddress, ...] | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> External:
        """Raises StackError when WALLET_NODES is not the JSON list that it should be."""
        nodes = environment.get("WALLET_NODES")
        try:
            addresses = tuple(NodeAddress(**node) for node in json.loads(nodes)) if nodes else None
        except (TypeError, ValueError):
            raise StackError('WALLET_NODES is not a JSON list of {"name", "url", "chain_id"}') from None
        return cls(
            database_url=environment.get("WALLET_DATABASE_URL") or None,
            redis_url=environment.get("WALLET_REDIS_URL") or None,
            tokens=ExternalTokens.from_environment(environment),
            nodes=addresses,
        )


@dataclass(frozen=True)
class StackOptions:
    """The defaults are those of `make up`."""

    # Seconds between blocks; None mines a block for each transaction at once.
    block_time_s: float | None = 1.0
    slots_in_an_epoch: int = 1
    signer_workers: int = 1
    tracing: bool = True
    # Each service tells its metrics at an address of its own; `make up` asks for it.
    metrics: bool = False
    # Stock Jaeger in front of tracestore: spans go through its collectors, and its UI shows them.
    jaeger: bool = False
    # anvil's pool bears thousands of pending transactions of one account. External nodes get broadcaster's default.
    max_in_flight: int = 4096
    # None = the signer's development policy.
    policy_file: Path | None = None
    # Service → further environment variables; they win over ours.
    environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    # A subset starts only these (and what they stand on is the caller's care); () = databases, tokens and nodes only.
    services: tuple[str, ...] = SERVICE_NAMES
    # Service → how many processes of it; 1 where it is not named.
    replicas: Mapping[str, int] = field(default_factory=dict)
    # End everything when the process that started the stack ends, however it ends.
    supervised: bool = False
    external: External = field(default_factory=lambda: External.from_environment(os.environ))

    def __post_init__(self) -> None:
        """Raises StackError when `replicas` names no service or no number, or Jaeger has nothing to show."""
        for name, count in self.replicas.items():
            if name not in SERVICE_NAMES or count < 1:
                raise StackError(f"replicas: '{name}' is no service, or {count} no number of processes")
        if self.jaeger and not (self.tracing and "tracestore" in self.services):
            raise StackError("Jaeger needs tracing and tracestore")

    def replicas_of(self, service: Service) -> tuple[Replica, ...]:
        return tuple(Replica(service, index) for index in range(self.replicas.get(service.name, 1)))
