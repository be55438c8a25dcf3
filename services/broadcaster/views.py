"""What each node says of its chain: its newest, safe and finalized block, and the blocks that are asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.core.errors import Reason, WalletError
from services.runtime.chain_nodes import ChainNodes
from services.runtime.json_rpc import Call
from services.runtime.node import Node
from services.runtime.node_answer import NodeRefusal, quantity

_log = logging.getLogger(__name__)

_GRACE_S = 0.1  # for the other nodes, once k have answered a look


@dataclass(frozen=True, slots=True)
class Block:
    number: int
    hash: bytes
    parent_hash: bytes
    tx_hashes: tuple[bytes, ...]
    timestamp_s: int  # since 1970, as the node says


@dataclass(frozen=True, slots=True)
class View:
    """What one node says of its chain."""

    name: str
    latest: Block
    safe: Block | None
    finalized: Block | None
    blocks: dict[int, Block]
    asked_at: float  # by the monotonic clock

    def hash_at(self, number: int) -> bytes | None:
        """The block's hash, as far as it follows from what was asked: the block itself may be large."""
        if self.latest.number == number:
            return self.latest.hash
        above = self.blocks.get(number + 1)
        return above.parent_hash if above is not None else None


class Observer:
    """Asks the nodes of one chain. A slow one is heard at the look at which it has answered."""

    def __init__(self, chain: ChainNodes) -> None:
        self._chain = chain
        # By node name: the question that is on its way, and what was wrong with the last answer.
        self._asked: dict[str, asyncio.Task[View]] = {}
        self._troubles: dict[str, str] = {}

    def close(self) -> None:
        for asked in self._asked.values():
            asked.cancel()

    async def views(self, numbers: range) -> list[View]:
        """At least k of them, with the blocks `numbers` where a node has them.

        Raises:
            WalletError: NODE_UNAVAILABLE when fewer than k nodes give a usable answer.
        """
        for node in self._chain.nodes:
            if node.name not in self._asked:
                self._asked[node.name] = asyncio.create_task(_view(node, numbers))
        views: list[View] = []
        while self._asked:
            # k nodes are enough to go on with.
            timeout_s = _GRACE_S if len(views) >= self._chain.required else None
            await asyncio.wait(self._asked.values(), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            answered = [name for name, asked in self._asked.items() if asked.done()]
            if not answered:
                break
            for name in answered:
                if (view := self._heard(name, self._asked.pop(name))) is not None:
                    views.append(view)
        if len(views) < self._chain.required:
            raise WalletError(
                Reason.NODE_UNAVAILABLE,
                Reason.NODE_UNAVAILABLE.meaning,
                chain_id=self._chain.chain_id,
                answered=len(views),
                required=self._chain.required,
            )
        return views

    def _heard(self, name: str, asked: asyncio.Task[View]) -> View | None:
        try:
            view = asked.result()
        except WalletError as error:
            cause = str(error)
            if self._troubles.get(name) != cause:
                _log.warning("a node cannot be watched", extra={"node": name, "cause": cause})
            self._troubles[name] = cause
            return None
        self._troubles.pop(name, None)
        return view


def agreed_number(numbers: Sequence[int], required: int) -> int:
    """The highest that `required` of them reach; there are at least so many."""
    return sorted(numbers, reverse=True)[required - 1]


async def _view(node: Node, numbers: range) -> View:
    asked_at = time.monotonic()
    names = ["latest", "safe", "finalized", *map(hex, numbers)]
    answers = await node.call_many([Call("eth_getBlockByNumber", [name, False]) for name in names])
    latest = _block(node, answers[0])
    if latest is None:
        raise node.nonsense("the node has no latest block", field="latest")
    blocks = {number: _block(node, answer) for number, answer in zip(numbers, answers[3:], strict=True)}
    if any(block is not None and block.number != number for number, block in blocks.items()):
        raise node.nonsense("a block has not the number that was asked for", field="number")
    return View(
        node.name,
        latest,
        _block(node, answers[1]),
        _block(node, answers[2]),
        {number: block for number, block in blocks.items() if block is not None},
        asked_at,
    )


def _block(node: Node, answer: Any) -> Block | None:
    """None where the node has no such block: it does not exist yet, or nothing is final yet."""
    if answer is None or isinstance(answer, NodeRefusal):
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("transactions"), list):
        raise node.nonsense("a block is no object with transactions", field="transactions")
    try:
        return Block(
            quantity(answer.get("number"), "number"),
            word(answer.get("hash"), "hash"),
            word(answer.get("parentHash"), "parentHash"),
            tuple(word(tx_hash, "transactions") for tx_hash in answer["transactions"]),
            quantity(answer.get("timestamp"), "timestamp"),
        )
    except WalletError as error:
        raise node.nonsense(error.message, **error.details) from None


def block_hash(answer: Any) -> bytes | None:
    """Of a node's answer about a block; None where it has no such block.

    Raises:
        WalletError: NODE_UNAVAILABLE.
    """
    if answer is None:
        return None
    return word(answer.get("hash") if isinstance(answer, dict) else None, "hash")


def word(value: object, field: str) -> bytes:
    """32 bytes of 0x-hex.

    Raises:
        WalletError: NODE_UNAVAILABLE with `field`.
    """
    if isinstance(value, str) and len(value) == 66 and value.startswith("0x"):
        try:
            return bytes.fromhex(value[2:])
        except ValueError:
            pass
    raise WalletError(Reason.NODE_UNAVAILABLE, "a node's answer is no 32 bytes of hex", field=field)
