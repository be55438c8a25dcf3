"""Proofs that a block which k nodes agree on holds transactions of ours, from whichever node tells it whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from services.broadcaster import telemetry
from services.broadcaster.agreement import AgreedBlock
from services.broadcaster.inclusion import Inclusion, opaque_transactions, prove_inclusions
from services.broadcaster.views import block_hash
from services.core.canonical import to_hex
from services.core.digests import keccak256
from services.core.errors import Reason, WalletError
from services.runtime import attributes
from services.runtime.chain_nodes import ChainNodes
from services.runtime.json_rpc import Call
from services.runtime.node import Node
from services.runtime.node_answer import quantity

_log = logging.getLogger(__name__)


async def prove(chain: ChainNodes, block: AgreedBlock, wanted: frozenset[bytes]) -> list[Inclusion]:
    """From any of the agreeing nodes: what it tells must hash to the agreed block.

    Raises:
        WalletError: NODE_UNAVAILABLE when none tells it.
    """
    failure = WalletError(Reason.NODE_UNAVAILABLE, Reason.NODE_UNAVAILABLE.meaning, field="block")
    for node in chain.preferred():
        if node.name not in block.nodes:
            continue
        try:
            return await _prove_from(node, block, wanted)
        except WalletError as error:
            if error.reason is not Reason.NODE_UNAVAILABLE:
                raise
            failure = node.nonsense(error.message, **error.details)
            telemetry.falsehoods.add(1, {attributes.WALLET_NODE_NAME: node.name})
            _log.warning("a node tells a block wrongly", extra={"node": node.name, "cause": str(error)})
    raise failure


async def _prove_from(node: Node, agreed: AgreedBlock, wanted: frozenset[bytes]) -> list[Inclusion]:
    number_or_hash = to_hex(agreed.hash)
    block, receipts = await node.call_many(
        [Call("eth_getBlockByHash", [number_or_hash, True]), Call("eth_getBlockReceipts", [number_or_hash])]
    )
    for answer in (block, receipts):
        if isinstance(answer, WalletError):
            raise answer
    if not isinstance(block, dict):
        raise node.nonsense("the node does not have the block", field="block")
    opaque: dict[str, bytes] = {}
    if hashes := opaque_transactions(block):
        answers = await node.call_many([Call("eth_getRawTransactionByHash", [each]) for each in hashes])
        for tx_hash, answer in zip(hashes, answers, strict=True):
            opaque[tx_hash] = _raw(node, tx_hash, answer)
    return await asyncio.to_thread(prove_inclusions, block, receipts, opaque, agreed.hash, wanted)


def _raw(node: Node, tx_hash: str, answer: Any) -> bytes:
    try:
        raw_tx = bytes.fromhex(answer.removeprefix("0x"))
    except (AttributeError, ValueError):
        raise node.nonsense("a raw transaction is not hex", field="raw_tx") from None
    if to_hex(keccak256(raw_tx)) != tx_hash:
        raise node.nonsense("a raw transaction is another one", field="raw_tx")
    return raw_tx


async def places(chain: ChainNodes, tx_hashes: Sequence[bytes]) -> dict[str, dict[bytes, int | None]]:
    """By node: the number of the block that holds each transaction, None where the node knows of none.

    A node that does not answer, or answers one of them with nonsense, is left out.
    """
    calls = [Call("eth_getTransactionReceipt", [to_hex(tx_hash)]) for tx_hash in tx_hashes]
    found: dict[str, dict[bytes, int | None]] = {}
    for node, answers in await chain.ask_all(lambda node: node.call_many(calls)):
        try:
            if isinstance(answers, WalletError):
                raise answers
            found[node.name] = {tx_hash: _place(answer) for tx_hash, answer in zip(tx_hashes, answers, strict=True)}
        except WalletError as error:
            _log.warning("a node tells no receipts", extra={"node": node.name, "cause": str(error)})
    return found


def _place(answer: Any) -> int | None:
    if isinstance(answer, WalletError):
        raise answer
    if answer is None:
        return None
    if not isinstance(answer, dict):
        raise WalletError(Reason.NODE_UNAVAILABLE, "a receipt is no object", field="receipt")
    if answer.get("blockNumber") is None:
        return None
    return quantity(answer["blockNumber"], "blockNumber")


async def agreed_hash(chain: ChainNodes, number: int) -> tuple[bytes | None, tuple[str, ...]]:
    """The hash of block `number` that k nodes give, None when k have no such block; and the nodes.

    Raises:
        WalletError: NODES_DISAGREE; NODE_UNAVAILABLE.
    """
    agreement = await chain.agree("eth_getBlockByNumber", [hex(number), False], normalise=block_hash)
    return agreement.value, agreement.nodes
