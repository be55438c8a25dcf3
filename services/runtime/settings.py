"""Settings that every service has; each service adds its own in its `settings.py`. Secrets are paths to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

SERVICES_DIR = Path(__file__).resolve().parent.parent


class ServiceSettings(BaseSettings):
    """Read from `WALLET_*` environment variables; a wrong value stops the start and names the variable."""

    model_config = SettingsConfigDict(env_prefix="WALLET_", frozen=True, extra="ignore")

    env: Literal["development", "production"] = "development"
    listen: str = "127.0.0.1:50051"
    tls_dir: Path = Path("/etc/goldenlink/tls")
    callers: Path = SERVICES_DIR / "callers.yaml"
    peers: Annotated[dict[str, str], NoDecode] = Field(default_factory=dict)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    shutdown_grace_s: float = 5.0
    # HOST:PORT of `GET /metrics`, plain HTTP: loopback, or a network of the pods alone. "" serves none.
    metrics_listen: str = ""
    # What the certificates of the collectors, or of tracestore in their place, name.
    collector_name: str = "tracestore"
    # Where spans of signature operations outlive this process; None keeps them in memory.
    spool_dir: Path | None = None
    spool_max_bytes: int = Field(default=512 * 1024 * 1024, ge=4 * 1024 * 1024)
    # From a write to its fsync: what a crash of the machine may lose. A crash of the process loses 0.2 s at most.
    spool_sync_s: float = Field(default=1.0, ge=0.0)

    @field_validator("peers", mode="before")
    @classmethod
    def _peers_from_json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    def peer_target(self, service: str) -> str:
        """gRPC target of a peer; without an entry, every address of its DNS name (headless service).

        An entry is `HOST:PORT`, or names several replicas: `ipv4:HOST:PORT,HOST:PORT`. Calls go to them in turn.
        """
        return self.peers.get(service, f"dns:///{service}:50051")


class DatabaseSettings(BaseSettings):
    """Where a service's tables live. The URL never holds a password."""

    model_config = SettingsConfigDict(env_prefix="WALLET_", frozen=True, extra="ignore")

    database_url: str
    database_password_file: Path | None = None
    database_owner_password_file: Path | None = None
    database_pool_size: int = Field(default=5, ge=1, le=5)
    database_timeout_s: float = 10.0


class TokenSettings(BaseSettings):
    """The PKCS#11 token of a service."""

    model_config = SettingsConfigDict(env_prefix="WALLET_", frozen=True, extra="ignore")

    pkcs11_library: Path = Path("/usr/lib/softhsm/libsofthsm2.so")
    token_label: str
    token_pin_file: Path


def read_secret(path: Path) -> str:
    """The text of a secret file without its last newline."""
    return path.read_text(encoding="utf-8").removesuffix("\n")
