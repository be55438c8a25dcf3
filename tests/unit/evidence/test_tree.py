"""The tree's edge as it grows and as it is read back, and proofs out of tiles, against RFC 6962 taken literally."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.errors import Reason, WalletError
from services.core.merkle import EMPTY_ROOT, Frontier, verify_inclusion
from services.core.tiles import Tile
from services.evidence.store import Store
from services.evidence.tiles import TileReader, tile_rows
from services.evidence.tree import FullTile, TreeEdge, rebuild_edge

SIZES = st.integers(0, 1_500)


def leaf_hash(number: int) -> bytes:
    return sha256(b"\0leaf" + number.to_bytes(4, "big")).digest()


HASHES = [leaf_hash(number) for number in range(66_500)]


def tree_root(hashes: list[bytes]) -> bytes:
    if len(hashes) <= 1:
        return hashes[0] if hashes else EMPTY_ROOT
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return sha256(b"\1" + tree_root(hashes[:split]) + tree_root(hashes[split:])).digest()


class MemoryStore(Store):
    """What the database holds of a tree of `size`."""

    def __init__(self, size: int) -> None:
        self.edge = TreeEdge()
        self.tiles: dict[tuple[int, int], FullTile] = {}
        self.size_in_store = size
        self.reads = 0
        for hashed in HASHES[:size]:
            for tile in self.edge.append(hashed):
                assert (tile.level, tile.number) not in self.tiles
                self.tiles[tile.level, tile.number] = tile

    async def full_tile(self, level: int, number: int) -> bytes | None:
        self.reads += 1
        tile = self.tiles.get((level, number))
        return tile.hashes if tile else None

    async def leaf_hashes(self, first: int, count: int) -> list[bytes]:
        return HASHES[: self.size_in_store][first : first + count]

    async def tile_roots(self, level: int, first: int, count: int) -> list[bytes]:
        found = [self.tiles.get((level, number)) for number in range(first, first + count)]
        return [tile.root for tile in found if tile]

    def read_back(self) -> TreeEdge:
        """The edge as `Store.take_over` rebuilds it."""
        size = self.size_in_store
        roots = {}
        level = 0
        while count := size >> 8 * (level + 1):
            first = size >> 8 * (level + 2) << 8
            roots[level] = [self.tiles[level, number].root for number in range(first, count)]
            level += 1
        newest = HASHES[size >> 8 << 8 : size]
        return rebuild_edge(Frontier.from_bytes(self.edge.frontier.to_bytes()), newest, roots)


@settings(max_examples=25, deadline=None)
@given(SIZES, st.integers(0, 700))
def test_an_edge_read_back_goes_on_as_the_one_that_grew(size: int, more: int) -> None:
    store = MemoryStore(size)
    again = store.read_back()
    for hashed in HASHES[size : size + more]:
        assert again.append(hashed) == store.edge.append(hashed)
    assert again.frontier.root() == store.edge.frontier.root() == tree_root(HASHES[: size + more])
    assert again.partial.get(0, []) == HASHES[(size + more) >> 8 << 8 : size + more]


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 511, 512, 700, 65_536, 65_537, 66_000, 66_300])
async def test_roots_and_proofs_out_of_tiles(size: int) -> None:
    store = MemoryStore(size)
    tiles = TileReader(store)
    root = await tiles.root(size)
    assert root == store.edge.frontier.root() == tree_root(HASHES[:size])
    # Smaller trees too: a checkpoint is proven long after the log went on.
    smaller = max(1, size * 2 // 3)
    assert await tiles.root(smaller) == tree_root(HASHES[:smaller])
    for tree_size, tree in ((size, root), (smaller, tree_root(HASHES[:smaller]))):
        indexes = sorted({0, tree_size // 3, tree_size // 2, tree_size - 1})
        for index, proof in zip(indexes, await tiles.inclusion_proofs(indexes, tree_size), strict=True):
            verify_inclusion(index, tree_size, HASHES[index], proof, tree)


async def test_tiles_of_every_level_and_width() -> None:
    store = MemoryStore(66_300)
    tiles = TileReader(store)
    assert await tiles.hashes(Tile(0, 258, 252)) == b"".join(HASHES[258 * 256 : 66_300])
    assert await tiles.hashes(Tile(0, 3, 5)) == b"".join(HASHES[768:773])
    roots = [tree_root(HASHES[begin : begin + 256]) for begin in range(0, 258 * 256, 256)]
    assert await tiles.hashes(Tile(1, 0)) == b"".join(roots[:256])
    assert await tiles.hashes(Tile(1, 1, 2)) == b"".join(roots[256:])
    assert await tiles.hashes(Tile(2, 0, 1)) == tree_root(roots[:256])
    for missing in (Tile(0, 258, 253), Tile(0, 258), Tile(0, 259, 1), Tile(1, 1, 3), Tile(2, 0, 2), Tile(3, 0, 1)):
        with pytest.raises(WalletError) as refused:
            await tiles.hashes(missing)
        assert refused.value.reason is Reason.NOT_FOUND


async def test_tiles_are_read_once_until_they_are_to_be_forgotten() -> None:
    store = MemoryStore(700)
    tiles = TileReader(store)
    await tiles.inclusion_proofs([0, 300, 699], 700)
    reads = store.reads
    await tiles.inclusion_proofs([1, 301, 698], 700)
    assert store.reads == reads
    tiles.forget()
    await tiles.root(700)
    assert store.reads > reads


@given(st.integers(1, 256))
def test_rows_hold_every_full_subtree_up_to_half_a_tile(width: int) -> None:
    rows = tile_rows(b"".join(HASHES[:width]))
    for height, row in enumerate(rows):
        assert len(row) == 32 * (width >> height)
        for index in range(width >> height):
            subtree = HASHES[index << height : (index + 1) << height]
            assert row[32 * index : 32 * index + 32] == tree_root(subtree)
    assert len(rows) == min(8, width.bit_length())
