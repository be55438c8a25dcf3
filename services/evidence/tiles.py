"""Tiles of the stored log, for proofs and for anybody who mirrors it (C2SP tlog-tiles)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from services.core.errors import Reason, WalletError
from services.core.merkle import EMPTY_ROOT, HASH_SIZE, SubtreeHash, inclusion_proof, root_hash
from services.core.tiles import HEIGHT, WIDTH, Tile, encode_bundle, subtree_hash_from_tiles
from services.evidence.store import Store
from services.evidence.tree import tile_root

_CACHED_TILES = 1_024  # 8 KiB each


class TileReader:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    async def full(self, level: int, number: int) -> bytes | None:
        """A full tile, 8,192 bytes; None while it is partial. It never changes, so it is cached."""
        key = (level, number)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        hashes = await self._store.full_tile(level, number)
        if hashes is not None:
            self._cache[key] = hashes
            if len(self._cache) > _CACHED_TILES:
                self._cache.popitem(last=False)
        return hashes

    async def hashes(self, tile: Tile) -> bytes:
        """The first `width` hashes of a tile of the stored tree.

        Raises:
            WalletError: NOT_FOUND when the tree has no such tile, or not yet that wide.
        """
        assert tile.level is not None
        stored = await self.full(tile.level, tile.number)
        if stored is None and tile.level == 0:
            leaves = await self._store.leaves(tile.number * WIDTH, tile.width)
            stored = b"".join(hashed for _, hashed in leaves)
        elif stored is None:
            first = tile.number * WIDTH
            below = [await self.full(tile.level - 1, number) for number in range(first, first + tile.width)]
            stored = b"".join(tile_root(hashes) for hashes in below if hashes is not None)
        if len(stored) < tile.width * HASH_SIZE:
            raise WalletError(Reason.NOT_FOUND, "the tree has no such tile", field="path", rule="is within the tree")
        return stored[: tile.width * HASH_SIZE]

    async def entries(self, tile: Tile) -> bytes:
        """An entry bundle. Raises WalletError NOT_FOUND like `hashes`."""
        leaves = await self._store.leaves(tile.number * WIDTH, tile.width)
        if len(leaves) < tile.width:
            raise WalletError(Reason.NOT_FOUND, "the log has no such entries", field="path", rule="is within the tree")
        return encode_bundle(leaf for leaf, _ in leaves)

    async def root(self, size: int) -> bytes:
        """The root hash of the first `size` entries."""
        return (await self._compute(size, lambda subtree_hash: [[root_hash(size, subtree_hash)]]))[0][0]

    async def inclusion_proofs(self, indexes: list[int], size: int) -> list[list[bytes]]:
        """One proof per index in the tree of `size`, leaf to root."""
        return await self._compute(
            size, lambda subtree_hash: [inclusion_proof(index, size, subtree_hash) for index in indexes]
        )

    async def _compute(self, size: int, compute: Callable[[SubtreeHash], list[list[bytes]]]) -> list[list[bytes]]:
        """Run a computation over subtrees: once to see which tiles it asks for, and once they are loaded."""
        asked: set[tuple[int, int]] = set()

        def ask(level: int, index: int) -> bytes:
            tile_level, height = divmod(level, HEIGHT)
            asked.add((tile_level, (index << height) // WIDTH))
            return EMPTY_ROOT

        compute(ask)
        loaded = {}
        for level, number in asked:
            width = min(WIDTH, (size >> (HEIGHT * level)) - number * WIDTH)
            loaded[level, number] = await self.hashes(Tile(level, number, width))
        return compute(subtree_hash_from_tiles(lambda level, number: loaded[level, number]))
