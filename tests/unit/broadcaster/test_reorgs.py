"""Where a reorg is seen, and where it began, over chains of any shape."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.broadcaster import reorgs
from services.broadcaster.agreement import is_forked
from services.broadcaster.reorgs import common_block
from services.broadcaster.views import Block, View

NAMES = ("node-a", "node-b", "node-c")


class Chain:
    chain_id = "eip155:31337"
    required = 2

    def note_disagreement(self, what: str, groups: Any) -> None:
        pass


CHAIN = cast(Any, Chain())


def block_hash(number: int, branch: int) -> bytes:
    return bytes([branch]) + number.to_bytes(31, "big")


def view(name: str, latest: int, fork: int, branch: int) -> View:
    """A node whose chain leaves ours (branch 0) above `fork`."""

    def at(number: int) -> Block:
        own, parent = (branch if n > fork else 0 for n in (number, number - 1))
        return Block(number, block_hash(number, own), block_hash(number - 1, parent), (), 0)

    return View(name, at(latest), None, None, {number: at(number) for number in range(1, latest + 1)}, 0.0)


def ours(first: int, cursor: int) -> dict[int, bytes]:
    return {number: block_hash(number, 0) for number in range(first, cursor + 1)}


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 100), st.integers(0, 64), st.integers(-64, 5), st.integers(0, 2))
def test_two_of_three_decide_whether_there_is_a_reorg(cursor: int, depth: int, growth: int, dissenter: int) -> None:
    """Also where it leaves the chain shorter; not where nodes are only behind."""
    fork, latest = max(cursor - depth, 0), max(cursor + growth, 1)
    views = [view(name, latest, fork, 1) for name in NAMES]
    views[dissenter] = view(NAMES[dissenter], cursor + 1, cursor + 1, 0)
    expected = latest > fork and fork < cursor
    assert is_forked(CHAIN, views, ours(1, cursor)) is expected
    # One alone is none.
    alone = [view(name, cursor + 1, cursor + 1, 0) for name in NAMES[:2]] + [view(NAMES[2], latest, fork, 1)]
    assert not is_forked(CHAIN, alone, ours(1, cursor))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 50), st.integers(1, 64), st.integers(-1, 130), st.integers(0, 130))
def test_the_last_common_block_is_found(first: int, count: int, fork: int, latest: int) -> None:
    known = ours(first, first + count - 1)
    asked: list[int] = []

    async def agreed_hash(chain: Any, number: int) -> tuple[bytes | None, tuple[str, ...]]:
        asked.append(number)
        return (block_hash(number, 0 if number <= fork else 1) if number <= latest else None), NAMES

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reorgs, "agreed_hash", agreed_hash)
        found = asyncio.run(common_block(CHAIN, known))
    common = [number for number in known if number <= min(fork, latest)]
    assert found == (max(common) if common else None)
    # 64 blocks are no 64 questions.
    assert len(asked) <= 7
