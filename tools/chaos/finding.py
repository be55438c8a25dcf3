"""One promise: whether it was kept, and the figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    promise: str
    ok: bool
    figures: str
