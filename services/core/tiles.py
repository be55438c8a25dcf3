"""Tiles of the log: their paths, their contents, and which of them a growing tree touches.

Source: C2SP tlog-tiles. A tile holds up to 256 hashes of the tree's level 8·L; an entry bundle holds the leaves that
the tile of level 0 and the same number commits to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from services.core.errors import Reason, WalletError, refuse
from services.core.merkle import HASH_SIZE, SubtreeHash, node_hash

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


def tile_hashes(tile: Tile, subtree_hash: SubtreeHash) -> bytes:
    """The contents of `tile`, 32 · width bytes, from the full subtrees of the tree."""
    assert tile.level is not None
    first = tile.number * WIDTH
    return b"".join(subtree_hash(tile.level * HEIGHT, index) for index in range(first, first + tile.width))


def subtree_hash_from_tiles(read: Callable[[int, int], bytes]) -> SubtreeHash:
    """Full subtrees out of tiles: `read(level, number)` answers the tile's contents, partial or full.

    The hash of a subtree within a tile is computed from the tile's own hashes, up to 128 of them. What the tiles do not
    hold raises WalletError NOT_FOUND.
    """

    def subtree_hash(level: int, index: int) -> bytes:
        tile_level, height = divmod(level, HEIGHT)
        number, offset = divmod(index << height, WIDTH)
        tile = read(tile_level, number)
        begin, end = offset * HASH_SIZE, (offset + (1 << height)) * HASH_SIZE
        if len(tile) < end:
            raise WalletError(Reason.NOT_FOUND, "The tiles do not hold this subtree.", level=level, index=index)
        row = [tile[start : start + HASH_SIZE] for start in range(begin, end, HASH_SIZE)]
        while len(row) > 1:
            row = [node_hash(row[left], row[left + 1]) for left in range(0, len(row), 2)]
        return row[0]

    return subtree_hash


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


def decode_bundle(data: bytes) -> list[bytes]:
    """The leaves of an entry bundle.

    Raises:
        WalletError: INVALID_REQUEST if `data` ends within a leaf.
    """
    leaves = []
    position = 0
    while position < len(data):
        begin = position + 2
        end = begin + int.from_bytes(data[position:begin], "big")
        if end > len(data):
            refuse("bundle", "ends after a whole leaf")
        leaves.append(data[begin:end])
        position = end
    return leaves
