"""The tree's right edge in memory: its frontier, and the tiles that are not yet full, level by level."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from services.core.merkle import Frontier
from services.core.tiles import HEIGHT, WIDTH


class FullTile(NamedTuple):
    """A tile that will never change; `root` is the hash that stands for it one tile level up."""

    level: int
    number: int
    hashes: bytes  # 8,192
    root: bytes


@dataclass
class TreeEdge:
    """Append leaf hashes; full tiles fall out once, in order, to be stored with the commit that fills them."""

    frontier: Frontier = field(default_factory=Frontier)
    # Hashes of the partial tile of each tile level, fewer than 256 each.
    partial: dict[int, list[bytes]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.frontier.size

    def copy(self) -> TreeEdge:
        return TreeEdge(self.frontier.copy(), {level: hashes.copy() for level, hashes in self.partial.items()})

    def append(self, leaf_hash: bytes) -> list[FullTile]:
        """Add a leaf; answer the tiles that it filled."""
        full = []
        completed = self.frontier.append(leaf_hash)
        for level in range(0, len(completed), HEIGHT):
            subtree = completed[level][2]
            tile = self.partial.setdefault(level // HEIGHT, [])
            tile.append(subtree)
            if len(tile) == WIDTH:
                # The leaf that fills a tile completes the subtree over the whole of it.
                _, number, root = completed[level + HEIGHT]
                full.append(FullTile(level // HEIGHT, number, b"".join(tile), root))
                tile.clear()
        return full


def full_tiles_before(level: int, size: int) -> int:
    """How many full tiles of `level` a tree of `size` has: the number of its partial one."""
    return size >> (HEIGHT * (level + 1))


def rebuild_edge(frontier: Frontier, newest_leaf_hashes: list[bytes], newest_roots: dict[int, list[bytes]]) -> TreeEdge:
    """The edge of a stored tree.

    `newest_leaf_hashes`: those behind the last full tile of level 0; `newest_roots[level]`: the roots of the full tiles
    of `level` behind the last full tile of `level + 1`.
    """
    partial = {0: newest_leaf_hashes} | {level + 1: roots for level, roots in newest_roots.items()}
    return TreeEdge(frontier, partial)
