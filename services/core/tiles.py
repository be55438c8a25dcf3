"""Tiles of the log: their paths, their contents, and which of them a growing tree touches.

Source: C2SP tlog-tiles. A tile holds up to 256 hashes of the tree's level 8·L; an entry bundle holds the leaves that
the tile of level 0 and the same number commits to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from services.core.errors import Reason, WalletError, refuse

HEIGHT = 8
WIDTH = 1 << HEIGHT
MAX_ENTRY_SIZE = 0xFFFF

_PATH = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<number>(?:x[0-9]{3}/)*[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)
_MAX_LEVEL = 63
_MAX_NUMBER = 2**64 >> HEIGHT


@dataclass(frozen=True, slots=True)
class Tile:
    """The tile `number` of `level`, or (level None) the entry bundle; `width` 256 is a full one."""

    level: int | None
    number: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        level = "entries" if self.level is None else str(self.level)
        rest, last = divmod(self.number, 1_000)
        number = f"{last:03d}"
        while rest:
            rest, part = divmod(rest, 1_000)
            number = f"x{part:03d}/{number}"
        partial = "" if self.width == WIDTH else f".p/{self.width}"
        return f"tile/{level}/{number}{partial}"

    @classmethod
    def from_path(cls, path: str) -> Tile:
        """The tile that `path` names.

        Raises:
            WalletError: NOT_FOUND for any path that no tile has: these come from the public.
        """
        match = _PATH.fullmatch(path)
        if match:
            level = None if match["level"] == "entries" else int(match["level"])
            # Long digit strings are refused by their size, before they become a number.
            digits = match["number"].replace("x", "").replace("/", "")
            if len(digits) <= 21 and (level is None or level <= _MAX_LEVEL):
                tile = cls(level, int(digits), int(match["width"] or WIDTH))
                # One tile, one path: leading x000 parts and a partial width of 256 or more do not survive the way back.
                if tile.number < _MAX_NUMBER and tile.width <= WIDTH and tile.path == path:
                    return tile
        raise WalletError(Reason.NOT_FOUND, "No tile has this path.", field="path", rule="is a tlog-tiles path")


def grown_tiles(old_size: int, size: int) -> Iterator[Tile]:
    """Every tile, with its width in the tree of `size`, that is new or wider than in the tree of `old_size`.

    Entry bundles are those of level 0, which `entry_bundle` names.
    """
    level = 0
    while size > 0:
        if old_size < size:
            for number in range(old_size // WIDTH, -(-size // WIDTH)):
                yield Tile(level, number, min(WIDTH, size - number * WIDTH))
        old_size, size, level = old_size // WIDTH, size // WIDTH, level + 1


def entry_bundle(tile: Tile) -> Tile:
    """The entry bundle of a tile of level 0."""
    return Tile(None, tile.number, tile.width)


def encode_bundle(leaves: Iterable[bytes]) -> bytes:
    """An entry bundle: each leaf behind its length, two bytes, big-endian.

    Raises:
        WalletError: PAYLOAD_TOO_LARGE for a leaf past 65,535 bytes.
    """
    parts = []
    for leaf in leaves:
        if len(leaf) > MAX_ENTRY_SIZE:
            refuse("leaf", f"has at most {MAX_ENTRY_SIZE} bytes", Reason.PAYLOAD_TOO_LARGE)
        parts.append(len(leaf).to_bytes(2, "big"))
        parts.append(leaf)
    return b"".join(parts)
