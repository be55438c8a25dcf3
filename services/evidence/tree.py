"""The tree's right edge in memory: its frontier, and the tiles that are not yet full, level by level."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.core.merkle import HASH_SIZE, Frontier, node_hash
from services.core.tiles import HEIGHT, WIDTH


@dataclass
class TreeEdge:
    """Append leaf hashes; full tiles fall out once, in order, to be stored with the commit that fills them."""

    frontier: Frontier = field(default_factory=Frontier)
    # Hashes of the partial tile of each tile level, fewer than 256 each.
    partial: dict[int, list[bytes]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.frontier.size

    def append(self, leaf_hash: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf; answer the tiles that it filled as (tile level, number, 8,192 bytes)."""
        full = []
        for level, index, subtree in self.frontier.append(leaf_hash):
            if level % HEIGHT:
                continue
            tile = self.partial.setdefault(level // HEIGHT, [])
            tile.append(subtree)
            if len(tile) == WIDTH:
                full.append((level // HEIGHT, index // WIDTH, b"".join(tile)))
                tile.clear()
        return full

    def partial_tile(self, level: int) -> bytes:
        return b"".join(self.partial.get(level, ()))


def partial_number(level: int, size: int) -> int:
    """Number of the partial tile of `level` in a tree of `size`: how many full ones stand before it."""
    return size >> (HEIGHT * (level + 1))


def tile_root(hashes: bytes) -> bytes:
    """Root of a full tile: the hash that stands for it one tile level up."""
    row = [hashes[start : start + HASH_SIZE] for start in range(0, len(hashes), HASH_SIZE)]
    while len(row) > 1:
        row = [node_hash(row[left], row[left + 1]) for left in range(0, len(row), 2)]
    return row[0]


def rebuild_edge(
    frontier: Frontier, newest_leaf_hashes: Iterable[bytes], full_tiles: dict[int, list[bytes]]
) -> TreeEdge:
    """The edge of a stored tree.

    `newest_leaf_hashes`: those behind the last full tile of level 0; `full_tiles[level]`: the full tiles of `level`
    behind the last full tile of `level + 1`.
    """
    edge = TreeEdge(frontier, {0: list(newest_leaf_hashes)})
    for level, tiles in full_tiles.items():
        edge.partial[level + 1] = [tile_root(hashes) for hashes in tiles]
    return edge
