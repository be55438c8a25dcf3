"""What k nodes agree on: blocks that follow ours, and how final they are. Pure, over what each node said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from services.broadcaster.inclusion_store import Height
from services.broadcaster.views import View, agreed_number
from services.runtime.chain_nodes import ChainNodes

_NONE = Height(-1, ())


@dataclass(frozen=True, slots=True)
class AgreedBlock:
    """A block that k nodes gave the same hash for, and all of its transactions that any of them named."""

    number: int
    hash: bytes
    parent_hash: bytes
    tx_hashes: frozenset[bytes]
    nodes: tuple[str, ...]


def extension(chain: ChainNodes, views: Sequence[View], parent_hash: bytes, numbers: range) -> list[AgreedBlock]:
    """The blocks `numbers` as far as k nodes agree on them, each the child of the one before."""
    agreed: list[AgreedBlock] = []
    for number in numbers:
        block = _agreed(chain, views, number)
        # A parent that is not ours is a reorg between our block and this one: the next look sees it at our block.
        if block is None or block.parent_hash != parent_hash:
            break
        agreed.append(block)
        parent_hash = block.hash
    return agreed


def _agreed(chain: ChainNodes, views: Sequence[View], number: int) -> AgreedBlock | None:
    blocks = {view.name: view.blocks[number] for view in views if number in view.blocks}
    votes = Counter((block.hash, block.parent_hash) for block in blocks.values())
    if not votes:
        return None
    if len(votes) > 1:
        chain.note_disagreement(
            "eth_getBlockByNumber",
            [[name for name, block in blocks.items() if block.hash == voted[0]] for voted in votes],
        )
    (block_hash, parent_hash), count = votes.most_common(1)[0]
    if count < chain.required:
        return None
    nodes = tuple(name for name, block in blocks.items() if block.hash == block_hash)
    hashes = frozenset(tx_hash for name in nodes for tx_hash in blocks[name].tx_hashes)
    return AgreedBlock(number, block_hash, parent_hash, hashes, nodes)


def height(chain: ChainNodes, views: Sequence[View], known: dict[int, bytes], level: str) -> Height:
    """The highest block at `level`, safe or finalized, for k nodes, each by a block of ours.

    A block's hash commits to all blocks before it: a node agrees with us about a block when any block that it calls
    safe, or finalized, is one of ours at that height or above.
    """
    heights = {}
    for view in views:
        # What is finalized is safe, whatever a node calls safe.
        heads = (view.finalized,) if level == "finalized" else (view.safe, view.finalized)
        numbers = [head.number for head in heads if head is not None and known.get(head.number) == head.hash]
        if numbers:
            heights[view.name] = max(numbers)
    if len(heights) < chain.required:
        return _NONE
    number = agreed_number(list(heights.values()), chain.required)
    return Height(number, tuple(name for name, reached in heights.items() if reached >= number))


def is_forked(chain: ChainNodes, views: Sequence[View], known: dict[int, bytes]) -> bool:
    """Whether k nodes agree that our newest block is not theirs, or that theirs, further down, is not ours."""
    cursor = max(known)
    votes = Counter(found for view in views if (found := view.hash_at(cursor)) is not None)
    if len(votes) > 1:
        chain.note_disagreement(
            "eth_getBlockByNumber",
            [[view.name for view in views if view.hash_at(cursor) == found] for found in votes],
        )
    if votes and votes.most_common(1)[0][1] >= chain.required:
        return votes.most_common(1)[0][0] != known[cursor]
    # A reorg may leave the chain shorter than it was.
    shorter = Counter(
        view.latest.hash
        for view in views
        if view.latest.number < cursor and known.get(view.latest.number, view.latest.hash) != view.latest.hash
    )
    return bool(shorter) and shorter.most_common(1)[0][1] >= chain.required
