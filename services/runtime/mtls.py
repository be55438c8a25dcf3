"""Who is on the other side: certificates of this service, and the allow-list of its callers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import grpc
import yaml

from services.core.errors import Reason, WalletError

# Caller → the methods that it may call; None for all.
Callers = Mapping[str, frozenset[str] | None]


def server_credentials(tls_dir: Path) -> grpc.ServerCredentials:
    """Present `cert.pem`; demand a client certificate of the suite's CA."""
    return grpc.ssl_server_credentials(
        [((tls_dir / "key.pem").read_bytes(), (tls_dir / "cert.pem").read_bytes())],
        root_certificates=(tls_dir / "ca.pem").read_bytes(),
        require_client_auth=True,
    )


def channel_credentials(tls_dir: Path) -> grpc.ChannelCredentials:
    """Present this service's certificate to a peer; trust the suite's CA only."""
    return grpc.ssl_channel_credentials(
        root_certificates=(tls_dir / "ca.pem").read_bytes(),
        private_key=(tls_dir / "key.pem").read_bytes(),
        certificate_chain=(tls_dir / "cert.pem").read_bytes(),
    )


def load_callers(path: Path, service: str) -> Callers:
    """Who may call `service`, by `callers.yaml`."""
    callers = yaml.safe_load(path.read_text(encoding="utf-8"))
    return read_callers(callers.get(service, []))


def read_callers(entries: Iterable[str | Mapping[str, Iterable[str]]]) -> Callers:
    """A service's entry in `callers.yaml`: names, and names with the methods that they are limited to."""
    callers: dict[str, frozenset[str] | None] = {}
    for entry in entries:
        if isinstance(entry, str):
            callers[entry] = None
        else:
            callers |= {name: frozenset(f"/{method}" for method in methods) for name, methods in entry.items()}
    return callers


def may_call(callers: Callers, caller: str, method: str) -> bool:
    """`method` is as gRPC names it: /package.Service/Method."""
    if caller not in callers:
        return False
    methods = callers[caller]
    return methods is None or method in methods


def caller_identity(auth_context: Mapping[str, object]) -> str:
    """The service named by the peer's certificate: its DNS subject alternative name.

    Raises:
        WalletError: UNAUTHENTICATED when the peer presented no certificate with such a name.
    """
    names = auth_context.get("x509_subject_alternative_name", ())
    for name in names if isinstance(names, list | tuple) else ():
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        if "://" not in text:
            return text
    raise WalletError(Reason.UNAUTHENTICATED, "the peer's certificate names no service", field="certificate")
