"""What the blocks that come tell of a chain's clock, and what they do not."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, cast

from services.broadcaster.chain_clock import MOST_BEHIND_S, ChainClock
from services.broadcaster.views import Block, View

NODES = ("node-a", "node-b", "node-c")


class Chain:
    chain_id = "eip155:31337"
    required = 2


class Ours:
    async def now(self) -> datetime:
        return datetime.now(UTC)


class Watched:
    """Three nodes that are looked at once a second, as far as the watch knows."""

    def __init__(self, behind_s: int = 0) -> None:
        self.remembered: list[int] = []
        self.clock = ChainClock(cast(Any, Chain()), cast(Any, Ours()), behind_s, self._remember)

    async def _remember(self, behind_s: int) -> None:
        self.remembered.append(behind_s)

    async def look(self, number: int, ages_s: tuple[float, ...], *, last_look_s: float = 1.0) -> bool:
        """One look, at which each node's newest block is so old by its own time; whether sending is held back."""
        # The look before this one was so long ago.
        for name, (seen, asked_at) in list(self.clock._seen.items()):
            self.clock._seen[name] = (seen, asked_at - last_look_s)
        now = time.time()
        views = [
            View(name, Block(number, b"", b"", (), int(now - age_s)), None, None, {}, time.monotonic())
            for name, age_s in zip(NODES, ages_s, strict=True)
        ]
        await self.clock.note(views)
        return self.clock.is_far_behind


async def test_blocks_that_come_an_hour_old_hold_back_what_is_sent_until_one_comes_with_the_right_time() -> None:
    chain = Watched()
    assert not await chain.look(1, (3600, 3600, 3600))
    assert await chain.look(2, (3600, 3600, 3600))
    assert await chain.look(2, (3600, 3600, 3600))
    assert not await chain.look(3, (1, 1, 1))
    (behind_s, right_s) = chain.remembered
    assert 3590 <= behind_s <= 3600
    assert abs(right_s) <= 2


async def test_an_old_block_at_the_head_of_a_chain_that_makes_none_says_nothing() -> None:
    chain = Watched()
    for _ in range(3):
        assert not await chain.look(7, (3600, 3600, 3600))
    assert chain.remembered == []


async def test_a_block_that_came_while_nobody_looked_may_be_as_old_as_it_says() -> None:
    chain = Watched()
    await chain.look(1, (1, 1, 1))
    assert not await chain.look(2, (59, 59, 59), last_look_s=60)
    assert await chain.look(3, (100, 100, 100), last_look_s=60)


async def test_one_node_alone_neither_holds_back_nor_lets_go() -> None:
    chain = Watched()
    await chain.look(1, (1, 1, 1))
    assert not await chain.look(2, (3600, 1, 1))
    assert await chain.look(3, (3600, 3600, 1))
    assert await chain.look(4, (3600, 1, 3600))
    assert not await chain.look(5, (1, 3600, 1))


async def test_what_the_log_bears_is_borne() -> None:
    chain = Watched()
    await chain.look(1, (1, 1, 1))
    assert not await chain.look(2, (MOST_BEHIND_S,) * 3)
    assert await chain.look(3, (MOST_BEHIND_S + 3,) * 3)


async def test_a_new_leader_goes_on_from_what_the_last_one_found() -> None:
    chain = Watched(behind_s=3600)
    assert await chain.look(1, (3600, 3600, 3600))
    assert not await chain.look(2, (0, 0, 0))
    assert chain.remembered[-1] <= 1


async def test_a_chain_that_is_ahead_holds_nothing_back() -> None:
    chain = Watched()
    await chain.look(1, (0, 0, 0))
    assert not await chain.look(2, (-3600, -3600, -3600))
    assert chain.remembered[-1] < -3590
