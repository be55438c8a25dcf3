"""The services of the suite as data: what each stands on, and what must serve before it starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Service:
    """One row of the process table. Every service has a database schema, certificates, gRPC and telemetry."""

    name: str
    # Started when these serve.
    after: tuple[str, ...] = ()
    # A PKCS#11 token of its own.
    token: bool = False
    redis: bool = False
    nodes: bool = False


SERVICES = (
    Service("tracestore"),
    Service("evidence", after=("tracestore",), token=True),
    Service("keys", after=("evidence",), token=True),
    Service("txbuilder", after=("evidence",), redis=True, nodes=True),
    Service("broadcaster", after=("evidence",), nodes=True),
    Service("signer", after=("evidence", "keys"), token=True),
    Service("gateway", after=("keys", "txbuilder", "signer", "broadcaster", "evidence", "tracestore")),
)
SERVICE_NAMES = tuple(service.name for service in SERVICES)
# Ended in this order: whoever asks goes before whoever answers.
STOP_STAGES = (("gateway",), ("signer", "txbuilder", "broadcaster", "keys"), ("evidence",), ("tracestore",))
ROLES = ("operator", "approver", "auditor")
