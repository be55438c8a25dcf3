"""The services of the suite as data: what each stands on, what must serve before it starts, and its replicas."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Service:
    """One row of the process table. Every service has a database schema, certificates, gRPC and telemetry."""

    name: str
    # Started when these serve.
    after: tuple[str, ...] = ()
    # PKCS#11 tokens: all replicas' hold the same keys, made by the first at its start, or each its own.
    tokens: Literal["same keys", "own keys"] | None = None
    redis: bool = False
    nodes: bool = False


SERVICES = (
    Service("tracestore"),
    # The log's checkpoint key.
    Service("evidence", after=("tracestore",), tokens="same keys"),
    # The key that seals seeds.
    Service("keys", after=("evidence",), tokens="same keys"),
    Service("txbuilder", after=("evidence",), redis=True, nodes=True),
    Service("broadcaster", after=("evidence",), nodes=True),
    # A transport pair for this signer alone.
    Service("signer", after=("evidence", "keys"), tokens="own keys"),
    Service("gateway", after=("keys", "txbuilder", "signer", "broadcaster", "evidence", "tracestore")),
)
SERVICE_NAMES = tuple(service.name for service in SERVICES)
# Ended in this order: whoever asks goes before whoever answers.
STOP_STAGES = (("gateway",), ("signer", "txbuilder", "broadcaster", "keys"), ("evidence",), ("tracestore",))
ROLES = ("operator", "approver", "auditor")

_REPLICA_NAME = re.compile(r"([a-z]+)(?:-[0-9]+)?")


@dataclass(frozen=True)
class Replica:
    """One process of a service. The first has the service's bare name: `signer`, `signer-1`, `signer-2`."""

    service: Service
    index: int = 0

    @property
    def name(self) -> str:
        return replica_name(self.service.name, self.index)


def replica_name(service: str, index: int) -> str:
    return service if index == 0 else f"{service}-{index}"


def service_of(process: str) -> str | None:
    """The service that a process of this name is a replica of, if it is one."""
    match = _REPLICA_NAME.fullmatch(process)
    return match[1] if match is not None and match[1] in SERVICE_NAMES else None
