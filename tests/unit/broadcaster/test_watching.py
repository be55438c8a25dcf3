"""What the watch commits when its nodes are ahead of it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from services.broadcaster.inclusion_store import Height
from services.broadcaster.views import Block, View
from services.broadcaster.watching import Watcher

NODES = ("node-a", "node-b")


class Chain:
    chain_id = "eip155:31337"
    required = 2
    nodes = ()


class Store:
    """Keeps what it is told of finality."""

    def __init__(self) -> None:
        self.heights: list[tuple[int, Height, tuple[str, ...]]] = []

    async def blocks(self) -> tuple[dict[int, bytes], int]:
        return {10: _hash(10)}, -1

    async def pending_inclusions(self) -> list[Any]:
        return []

    async def unproven(self, tx_hashes: list[bytes]) -> frozenset[bytes]:
        return frozenset()

    async def add_blocks(
        self, blocks: Any, found: Any, safe: int, finalized: Height, safe_nodes: tuple[str, ...], limit: int
    ) -> list[Any]:
        self.heights.append((safe, finalized, safe_nodes))
        return []


class Unwatched:
    """A chain's clock that nobody looks at."""

    async def note(self, views: list[View]) -> None:
        pass


def _hash(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _block(number: int) -> Block:
    return Block(number, _hash(number), _hash(number - 1), (), 0)


async def test_nothing_is_called_safe_that_no_node_says_so_of_at_this_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that falls behind knows none of the blocks that its nodes call safe by then."""
    store = Store()
    watcher = Watcher(
        cast(Any, store),
        cast(Any, None),
        cast(Any, None),
        cast(Any, None),
        cast(Any, Chain()),
        cast(Any, None),
        cast(Any, Unwatched()),
        interval_s=0.1,
        safe_patience_s=0.0,
        changed=lambda: None,
        freed=lambda: None,
        broken=cast(Any, None),
    )
    await watcher.recover()
    heads = iter([(11, 10), (40, 30)])

    async def ask() -> list[View]:
        latest, safe = next(heads)
        cursor = 10 if latest == 11 else 11
        blocks = {number: _block(number) for number in range(cursor + 1, min(latest, cursor + 4) + 1)}
        return [View(name, _block(latest), _block(safe), None, blocks, 0.0) for name in NODES]

    monkeypatch.setattr(watcher, "_views", ask)
    await watcher.look()
    assert store.heights[-1] == (10, Height(-1, ()), NODES)
    assert not watcher.is_behind
    await watcher.look()
    assert store.heights[-1] == (-1, Height(-1, ()), ())
    assert watcher.is_behind
