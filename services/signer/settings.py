"""Settings of signer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.runtime.settings import SERVICES_DIR, DatabaseSettings, ServiceSettings, TokenSettings


class WorkerSettings(TokenSettings):
    """What a child needs: the token and nothing else."""

    env: Literal["development", "production"] = "development"
    # `software` is for tests: keys in this process's memory, under the transport pair (PEM) of the file below.
    signer_backend: Literal["pkcs11", "software"] = "pkcs11"
    software_transport_key_file: Path | None = None
    # Leaf keys that a child keeps unwrapped in its session.
    signer_cached_leaves: int = Field(default=1_024, ge=1)


class PoolSettings(BaseSettings):
    """The children."""

    model_config = SettingsConfigDict(env_prefix="WALLET_", frozen=True, extra="ignore")

    signer_workers: int = Field(default=1, ge=1, le=64)
    # Longest time between two answers of a child that has work; past it the child is killed.
    token_timeout_s: float = Field(default=3.0, gt=0)


class SignerSettings(ServiceSettings, DatabaseSettings, WorkerSettings, PoolSettings):
    # The first policy of an empty database, and nothing after: see docs/POLICY.md.
    policy_file: Path = SERVICES_DIR / "signer" / "default_policy.yaml"
    # 32 bytes, shared by the suite: wallet.account.id is a keyed hash, because addresses are guessable.
    telemetry_hmac_key_file: Path

    @model_validator(mode="after")
    def _no_software_keys_in_production(self) -> Self:
        if self.env == "production" and self.signer_backend == "software":
            raise ValueError("WALLET_SIGNER_BACKEND=software does not start where WALLET_ENV=production")
        return self
