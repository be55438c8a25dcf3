"""Tiles of the stored log, for proofs and for anybody who mirrors it (C2SP tlog-tiles)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from typing import TypeVar

from services.core.errors import Reason, WalletError
from services.core.merkle import HASH_SIZE, SubtreeHash, inclusion_proof, root_hash
from services.core.tiles import HEIGHT, WIDTH, Tile, encode_bundle
from services.evidence.store import Store

T = TypeVar("T")

# Row h of a tile: its full subtrees of height h, 32 bytes each; row 0 is the tile itself.
TileRows = tuple[bytes, ...]

_CACHED_TILES = 1_024  # at most 16 KiB each


class _NotLoadedError(Exception):
    def __init__(self, tile: Tile) -> None:
        super().__init__(tile.path)
        self.tile = tile


class TileReader:
    """What a tile of one width holds never changes, so tiles are cached, with the hashes between their rows."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: OrderedDict[Tile, TileRows] = OrderedDict()

    def forget(self) -> None:
        """Read everything anew: the database may be another one now."""
        self._cache.clear()

    async def hashes(self, tile: Tile) -> bytes:
        """The first `width` hashes of a tile of the stored tree.

        Raises:
            WalletError: NOT_FOUND when the tree has no such tile, or not yet that wide.
        """
        return (await self._rows(tile))[0]

    async def entries(self, tile: Tile) -> bytes:
        """An entry bundle. Raises WalletError NOT_FOUND like `hashes`."""
        leaves = await self._store.leaves(tile.number * WIDTH, tile.width)
        if len(leaves) < tile.width:
            raise WalletError(Reason.NOT_FOUND, "the log has no such entries", field="path", rule="is within the tree")
        return encode_bundle(leaves)

    async def root(self, size: int) -> bytes:
        """The root hash of the first `size` entries."""
        return await self._compute(size, {}, lambda subtree_hash: root_hash(size, subtree_hash))

    async def inclusion_proofs(self, indexes: list[int], size: int) -> list[list[bytes]]:
        """One proof per index in the tree of `size`, leaf to root."""
        loaded: dict[tuple[int, int], TileRows] = {}

        async def proof(index: int) -> list[bytes]:
            return await self._compute(size, loaded, lambda subtree_hash: inclusion_proof(index, size, subtree_hash))

        return [await proof(index) for index in indexes]

    async def _compute(
        self, size: int, loaded: dict[tuple[int, int], TileRows], compute: Callable[[SubtreeHash], T]
    ) -> T:
        """Run a computation over subtrees of the tree of `size`, again for each tile that it turns out to need."""

        def subtree_hash(level: int, index: int) -> bytes:
            tile_level, height = divmod(level, HEIGHT)
            number, offset = divmod(index << height, WIDTH)
            rows = loaded.get((tile_level, number))
            if rows is None:
                width = min(WIDTH, (size >> (HEIGHT * tile_level)) - number * WIDTH)
                raise _NotLoadedError(Tile(tile_level, number, width))
            begin = (offset >> height) * HASH_SIZE
            return rows[height][begin : begin + HASH_SIZE]

        while True:
            try:
                return compute(subtree_hash)
            except _NotLoadedError as needed:
                tile = needed.tile
            assert tile.level is not None
            loaded[tile.level, tile.number] = await self._rows(tile)

    async def _rows(self, tile: Tile) -> TileRows:
        if tile in self._cache:
            self._cache.move_to_end(tile)
            return self._cache[tile]
        hashes = await self._read(tile)
        if len(hashes) < tile.width * HASH_SIZE:
            raise WalletError(Reason.NOT_FOUND, "the tree has no such tile", field="path", rule="is within the tree")
        rows = self._cache[tile] = tile_rows(hashes[: tile.width * HASH_SIZE])
        if len(self._cache) > _CACHED_TILES:
            self._cache.popitem(last=False)
        return rows

    async def _read(self, tile: Tile) -> bytes:
        assert tile.level is not None
        stored = await self._store.full_tile(tile.level, tile.number)
        if stored is not None:
            return stored
        first = tile.number * WIDTH
        if tile.level == 0:
            return b"".join(await self._store.leaf_hashes(first, tile.width))
        return b"".join(await self._store.tile_roots(tile.level - 1, first, tile.width))


def tile_rows(hashes: bytes) -> TileRows:
    """Every full subtree within a tile, up to half of a full one."""
    rows = [hashes]
    while len(rows) < HEIGHT and len(rows[-1]) >= 2 * HASH_SIZE:
        below = rows[-1]
        pairs = range(0, len(below) - 2 * HASH_SIZE + 1, 2 * HASH_SIZE)
        # RFC 6962 §2.1: SHA-256(0x01 ‖ left ‖ right), the two side by side already.
        rows.append(b"".join(sha256(b"\x01" + below[begin : begin + 2 * HASH_SIZE]).digest() for begin in pairs))
    return tuple(rows)
