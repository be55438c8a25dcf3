"""What each node said last of a transaction that some refuse. One node's word stalls nothing: k must say so."""

from __future__ import annotations

from collections import Counter

from services.broadcaster.refusals import BEYOND_FEES, SETTLED, STALLS, Meaning
from services.broadcaster.submission import StallCause

_MAX_TRANSACTIONS = 10_000  # the oldest are forgotten, and heard again when they are sent again


class Verdicts:
    def __init__(self, required: int) -> None:
        self._required = required
        self._refusals: dict[bytes, dict[str, Meaning]] = {}

    def note(self, tx_hash: bytes, node: str, meaning: Meaning) -> None:
        refusals = self._refusals.get(tx_hash)
        if meaning in SETTLED:
            if refusals is not None:
                refusals.pop(node, None)
                if not refusals:
                    del self._refusals[tx_hash]
            return
        if refusals is None:
            refusals = self._refusals[tx_hash] = {}
            if len(self._refusals) > _MAX_TRANSACTIONS:
                del self._refusals[next(iter(self._refusals))]
        refusals[node] = meaning

    def stall(self, tx_hash: bytes) -> StallCause | None:
        """Why it is stalled, where k nodes last said the same."""
        votes = Counter(
            STALLS[meaning] for meaning in self._refusals.get(tx_hash, {}).values() if meaning in STALLS
        ).most_common(1)
        return votes[0][0] if votes and votes[0][1] >= self._required else None

    def is_beyond_fees(self, tx_hash: bytes) -> bool:
        """Whether k nodes last refused it for something that a bump does not mend."""
        refusals = self._refusals.get(tx_hash, {}).values()
        return sum(meaning in BEYOND_FEES for meaning in refusals) >= self._required
