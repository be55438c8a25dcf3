"""Settings of `evidence`, beside those of every service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.runtime.settings import DatabaseSettings, ServiceSettings, TokenSettings


class EvidenceSettings(ServiceSettings, DatabaseSettings, TokenSettings):
    # Name of the log in its checkpoints, and of the key that signs them (C2SP tlog-checkpoint).
    evidence_origin: str = "goldenlink.example/log"
    # The newest checkpoint, kept outside the database: a restored backup is noticed by it.
    checkpoint_file: Path
    # At most one checkpoint per so many seconds.
    checkpoint_interval_s: float = Field(default=2.0, gt=0)
    # Plain HTTP, HOST:PORT; empty: no tiles are served.
    tiles_listen: str = ""
    # A file with the bearer token that auditors present; without one, tiles are public.
    tiles_token_file: Path | None = None
    # Distinct nodes that a safe or finalized inclusion names at least: the k of trust.json.
    nodes_required: int = Field(default=2, ge=1)
    # The sequencer's lease: a standby looks every tenth of it, and takes over once it has run out.
    lease_s: float = Field(default=2.5, gt=0)
    # Entries that may wait for the sequencer; past it appends are refused, to be retried.
    max_waiting_entries: int = Field(default=20_000, ge=1)

    def with_pool_size(self, size: int) -> EvidenceSettings:
        """For one of several pools of connections."""
        return self.model_copy(update={"database_pool_size": size})
