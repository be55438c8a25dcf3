"""Settings of `txbuilder`, beside those of every service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.runtime.node_settings import NodeSettings
from services.runtime.settings import DatabaseSettings, ServiceSettings


class TxBuilderSettings(ServiceSettings, DatabaseSettings, NodeSettings):
    # The URL may hold a password, so it stands in a file.
    redis_url_file: Path
    # 32 bytes, shared by all services: names accounts where their addresses must not stand.
    telemetry_hmac_key_file: Path
    lock_lease_s: float = Field(default=5.0, gt=0)
    # Longest wait for the lock; past it allocation goes on through the row lock alone.
    lock_wait_s: float = Field(default=2.0, gt=0)
    # Percent on top of the node's estimate, for state that moves before the block.
    gas_margin_percent: int = Field(default=20, ge=0, le=400)
    # Where the fee history shows no tips, wei per gas.
    default_priority_fee_wei: int = Field(default=1_000_000_000, ge=0)
    # An estimate above it is refused rather than paid, wei per gas.
    fee_cap_wei: int = Field(default=1_000_000_000_000, gt=0)
