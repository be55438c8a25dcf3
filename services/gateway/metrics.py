"""What gateway measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from services.gateway.transfer import State
from services.runtime import attributes as names
from services.runtime.metric_names import WALLET_NONCE_GAP_FILLS, WALLET_TRANSFER_BUMPS, WALLET_TRANSFERS
from services.runtime.metrics import counter

gap_fills = counter(WALLET_NONCE_GAP_FILLS)
bumps = counter(WALLET_TRANSFER_BUMPS)

_transfers = counter(WALLET_TRANSFERS)


def count_transfers(states: Iterable[State]) -> None:
    """One state for each transfer that came to it."""
    for state, count in Counter(states).items():
        _transfers.add(count, {names.WALLET_STATE: state.value})
