"""Secrets and personal data that are known, in every form in which they could leak."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Canary:
    """One value that must not be found. `name` says what it is; no failure message shows the value itself."""

    name: str
    # As text, and as bytes where it is bytes.
    text: str
    raw: bytes = b""

    @classmethod
    def of_bytes(cls, name: str, raw: bytes) -> Canary:
        return cls(name, raw.hex(), raw)

    @classmethod
    def of_text(cls, name: str, text: str) -> Canary:
        return cls(name, text)

    def is_in(self, haystack: bytes) -> bool:
        """Whether it stands there: as text in any case, in hex, in base64, or raw."""
        lower = haystack.lower()
        plain = self.text.lower().encode()
        if plain in lower or plain.hex().encode() in lower or _base64(self.text.encode()) in haystack:
            return True
        return bool(self.raw) and (self.raw in haystack or _base64(self.raw) in haystack)


def _base64(value: bytes) -> bytes:
    # Without its end, whose digits depend on what follows.
    return base64.b64encode(value)[: len(value) // 3 * 4]


def leaked(canaries: Iterable[Canary], places: dict[str, bytes]) -> list[str]:
    """ "what in where", for each canary that is found."""
    return [
        f"{canary.name} in {place}"
        for place, haystack in places.items()
        for canary in canaries
        if canary.is_in(haystack)
    ]
