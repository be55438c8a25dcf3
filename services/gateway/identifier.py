"""Ids that sort by time: a prefix and a ULID (48 bits of milliseconds, 80 random bits, Crockford base 32)."""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS = 80


class IdentifierSource:
    """Ids of one process grow strictly, also within a millisecond and when the clock steps back."""

    def __init__(self) -> None:
        self._last = 0

    def next(self, prefix: str) -> str:
        """`<prefix>-` and 26 characters of [0-9A-Z]."""
        fresh = (time.time_ns() // 1_000_000 << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
        # ULID specification, "Monotonicity": within one millisecond the random part is incremented.
        same_millisecond = fresh >> _RANDOM_BITS <= self._last >> _RANDOM_BITS
        self._last = self._last + 1 if same_millisecond else fresh
        return f"{prefix}-" + "".join(_ALPHABET[self._last >> shift & 31] for shift in range(125, -1, -5))
