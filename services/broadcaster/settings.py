"""Settings of `broadcaster`, beside those of every service."""

from __future__ import annotations

from pydantic import Field

from services.runtime.node_settings import NodeSettings
from services.runtime.settings import DatabaseSettings, ServiceSettings


class BroadcasterSettings(ServiceSettings, DatabaseSettings, NodeSettings):
    # Unmined nonces per account that are with the nodes; what a public node's pool bears.
    max_in_flight: int = Field(default=64, ge=1)
    # Pause between two looks at the chain.
    watch_interval_s: float = Field(default=0.5, gt=0)
    # A transaction that k nodes have answered and no block holds is requested again after so long, then twice that, ….
    resend_after_s: float = Field(default=15.0, gt=0)
    # A transfer is marked as stalled when its newest transaction has been with the nodes, and its nonce the account's
    # next, for so long.
    stall_after_s: float = Field(default=60.0, gt=0)
    # Pause between two looks at the nonces of transfers that wait for a block, once they have waited for so long.
    nonce_check_s: float = Field(default=5.0, gt=0)
    # How long a block stays `safe` before that is entered: where finality follows sooner, it is entered alone.
    safe_patience_s: float = Field(default=2.0, ge=0)
    # The lease on a chain: a standby takes over once it has run out.
    lease_s: float = Field(default=3.0, gt=0)
