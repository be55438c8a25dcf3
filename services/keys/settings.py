"""Settings of keys."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from services.runtime.settings import DatabaseSettings, ServiceSettings, TokenSettings

# Of the AES key in the token that seals seeds.
SEALING_KEY_LABEL = "seeds"


class KeysSettings(ServiceSettings, DatabaseSettings, TokenSettings):
    # Longest time for one order of the ceremony's process, its start included; past it the process is killed.
    ceremony_timeout_s: float = Field(default=10.0, gt=0)
    # In production only these transport keys are served: a SHA-256 fingerprint in hex a line, # starts a comment. It is
    # read at each use.
    approved_transport_keys_file: Path | None = None
