"""Settings of the gateway, read from `WALLET_*` environment variables."""

from __future__ import annotations

from pathlib import Path

from services.runtime.settings import DatabaseSettings, ServiceSettings


class GatewaySettings(ServiceSettings, DatabaseSettings):
    # HTTP only; the gateway has no gRPC server. Port 0 takes a free one.
    http_listen: str = "127.0.0.1:8080"
    # 32 raw bytes, AES-256-GCM, for the personal fields of open transfers.
    gateway_encryption_key_file: Path
    # Swagger UI's files (npm package swagger-ui-dist) for /docs; without them the page loads them from the public CDN.
    docs_assets_dir: Path | None = None

    @property
    def http_host(self) -> str:
        return self.http_listen.rpartition(":")[0]

    @property
    def http_port(self) -> int:
        return int(self.http_listen.rpartition(":")[2])
