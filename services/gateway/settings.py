"""Settings of the gateway, read from `WALLET_*` environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.runtime.settings import DatabaseSettings, ServiceSettings


class GatewaySettings(ServiceSettings, DatabaseSettings):
    # HTTP only; the gateway has no gRPC server. Port 0 takes a free one.
    http_listen: str = "127.0.0.1:8080"
    # The scheme that clients use, for signatures that cover it: https where a proxy ends TLS before this process.
    public_scheme: Literal["http", "https"] = "http"
    # 32 raw bytes, AES-256-GCM, for the personal fields of open transfers.
    gateway_encryption_key_file: Path
    # Swagger UI's files (npm package swagger-ui-dist) for /docs; without them the page loads them from the public CDN.
    docs_assets_dir: Path | None = None

    # A nonce that nothing spends, below one that is on its way, is repaired after so long.
    gap_after_s: float = Field(default=15.0, ge=0)
    # A proposed policy can be approved for so long.
    policy_proposal_valid_s: float = Field(default=7 * 86_400.0, gt=0)

    @property
    def http_host(self) -> str:
        return self.http_listen.rpartition(":")[0]

    @property
    def http_port(self) -> int:
        return int(self.http_listen.rpartition(":")[2])
