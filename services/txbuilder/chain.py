"""What building needs to know of the chain. What decides a nonce is agreed by k nodes; estimates are not."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from services.core.addresses import Address
from services.core.canonical import to_hex
from services.core.errors import Reason, WalletError
from services.runtime.chain_nodes import ChainNodes
from services.runtime.json_rpc import Call
from services.runtime.node import Node
from services.runtime.node_answer import NodeRefusal, quantity
from services.runtime.nodes import Nodes
from services.txbuilder.fees import Market, priority_fee
from services.txbuilder.transfers import Draft

_HISTORY_BLOCKS = 10
_HISTORY_PERCENTILE = 50
_MARKET_AGE_S = 1.0
_CODE_AGE_S = 60.0
_CACHED_ADDRESSES = 100_000
T = TypeVar("T")
# geth and those after it: the call reverted, with its data.
_REVERTED = 3


@dataclass(frozen=True, slots=True)
class AccountState:
    """An account as k nodes agree to see it."""

    balance_wei: int
    # Transactions of the account in the latest and in the finalized block: its next nonces there.
    mined_nonce: int
    finalized_nonce: int


@dataclass(frozen=True, slots=True)
class ChainHealth:
    chain_id: str
    nodes_answering: int
    nodes_required: int
    market: Market | None


class ChainReader:
    def __init__(self, nodes: Nodes, default_priority_fee_wei: int) -> None:
        self._nodes = nodes
        self._default_priority_fee_wei = default_priority_fee_wei
        self._markets: dict[str, tuple[float, Market]] = {}
        self._market_locks: dict[str, asyncio.Lock] = {chain.chain_id: asyncio.Lock() for chain in nodes.chains}
        # Addresses that had no code, and when that was seen.
        self._without_code: dict[tuple[str, Address], float] = {}

    @property
    def chain_ids(self) -> frozenset[str]:
        return frozenset(chain.chain_id for chain in self._nodes.chains)

    async def market(self, chain_id: str) -> Market:
        """Fees and block limit of the chain's head, at most a second old: the median of what the nodes say.

        Raises:
            WalletError: UNKNOWN_CHAIN, NODE_UNAVAILABLE.
        """
        async with self._lock(chain_id):
            seen, market = self._markets.get(chain_id, (0.0, None))
            if market is None or time.monotonic() - seen > _MARKET_AGE_S:
                market = _median_market(await _ask_all(self._nodes.chain(chain_id), self._ask_market))
                self._markets[chain_id] = (time.monotonic(), market)
            return market

    async def account_state(self, chain_id: str, address: Address) -> AccountState:
        """Balance and nonces on which k nodes agree.

        Raises:
            WalletError: NODES_DISAGREE, NODE_UNAVAILABLE.
        """
        chain = self._nodes.chain(chain_id)
        account = to_hex(address)
        # Pinned to the median head, so that nodes a block apart agree and one node's lie moves nothing.
        block = hex(statistics.median_low(await _heads(chain)))
        calls = [
            Call("eth_getBalance", [account, block]),
            Call("eth_getTransactionCount", [account, block]),
            Call("eth_getTransactionCount", [account, "finalized"]),
        ]

        async def ask(node: Node) -> list[Any]:
            results = await node.call_many(calls)
            for result in results:
                if isinstance(result, WalletError):
                    raise result
            return results

        def normalise(results: list[Any]) -> AccountState:
            return AccountState(
                quantity(results[0], "balance"), quantity(results[1], "nonce"), quantity(results[2], "finalized nonce")
            )

        return (await chain.agree_by(ask, None, normalise, "account state")).value

    async def without_code(self, chain_id: str, addresses: set[Address]) -> set[Address]:
        """Those of `addresses` that are no contracts; an answer is kept for a minute."""
        now = time.monotonic()
        plain = {one for one in addresses if now - self._without_code.get((chain_id, one), -_CODE_AGE_S) < _CODE_AGE_S}
        unknown = sorted(addresses - plain)
        if unknown:
            calls = [Call("eth_getCode", [to_hex(address), "latest"]) for address in unknown]
            for address, code in zip(unknown, await self._nodes.chain(chain_id).call_many(calls), strict=True):
                if code == "0x":
                    plain.add(address)
                    self._without_code[chain_id, address] = now
            if len(self._without_code) > _CACHED_ADDRESSES:
                self._without_code.clear()
        return plain

    async def estimate_gas(self, chain_id: str, drafts: list[Draft]) -> list[int | WalletError]:
        """What a node says each transfer would use; EXECUTION_REVERTED or INSUFFICIENT_FUNDS where it could not run."""
        if not drafts:
            return []
        calls = [Call("eth_estimateGas", [_call_object(draft)]) for draft in drafts]
        return [_estimate(result) for result in await self._nodes.chain(chain_id).call_many(calls)]

    async def health(self) -> list[ChainHealth]:
        """Each chain as its nodes answer now."""
        return [await self._health(chain.chain_id) for chain in self._nodes.chains]

    async def _health(self, chain_id: str) -> ChainHealth:
        chain = self._nodes.chain(chain_id)
        try:
            answering = len(await _heads(chain))
        except WalletError as error:
            answering = int(error.details.get("answered", 0))
        try:
            market = await self.market(chain_id)
        except WalletError:
            market = None
        return ChainHealth(chain_id, answering, chain.required, market)

    def _lock(self, chain_id: str) -> asyncio.Lock:
        self._nodes.chain(chain_id)
        return self._market_locks[chain_id]

    async def _ask_market(self, node: Node) -> Market:
        history, block = await node.call_many(
            [
                Call("eth_feeHistory", [hex(_HISTORY_BLOCKS), "latest", [_HISTORY_PERCENTILE]]),
                Call("eth_getBlockByNumber", ["latest", False]),
            ]
        )
        try:
            base_fees = [quantity(fee, "baseFeePerGas") for fee in history["baseFeePerGas"]]
            rewards = [quantity(row[0], "reward") for row in history.get("reward") or []]
            number, gas_limit = quantity(block["number"], "number"), quantity(block["gasLimit"], "gasLimit")
            base_fee_wei = base_fees[-1]
        except (TypeError, KeyError, IndexError) as error:
            raise node.nonsense("the fee history has not its form", field="feeHistory") from error
        return Market(number, gas_limit, base_fee_wei, priority_fee(rewards, self._default_priority_fee_wei))


async def _heads(chain: ChainNodes) -> list[int]:
    async def ask(node: Node) -> int:
        return quantity(await node.call("eth_blockNumber"), "block_number")

    return await _ask_all(chain, ask)


async def _ask_all(chain: ChainNodes, ask: Callable[[Node], Coroutine[Any, Any, T]]) -> list[T]:
    """The answers that came in time, at least k. Raises WalletError NODE_UNAVAILABLE with `answered`."""
    usable = [answer for _, answer in await chain.ask_all(ask) if not isinstance(answer, WalletError)]
    if len(usable) < chain.required:
        raise WalletError(
            Reason.NODE_UNAVAILABLE,
            Reason.NODE_UNAVAILABLE.meaning,
            chain_id=chain.chain_id,
            required=chain.required,
            answered=len(usable),
        )
    return usable


def _median_market(markets: list[Market]) -> Market:
    """Field by field, so that one node's word, however wrong, is never the answer of three."""

    def median(values: list[int]) -> int:
        return int(statistics.median_low(values))

    return Market(
        median([market.block_number for market in markets]),
        median([market.block_gas_limit for market in markets]),
        median([market.base_fee_wei for market in markets]),
        median([market.priority_fee_wei for market in markets]),
    )


def _call_object(draft: Draft) -> dict[str, Any]:
    terms = draft.terms
    call: dict[str, Any] = {"from": to_hex(terms.sender), "value": hex(terms.value_wei)}
    if terms.to is not None:
        call["to"] = to_hex(terms.to)
    if terms.data:
        call["data"] = to_hex(terms.data)
    if draft.options.access_list:
        call["accessList"] = [
            {"address": to_hex(address), "storageKeys": [to_hex(key) for key in keys]}
            for address, keys in draft.options.access_list
        ]
    return call


def _estimate(result: object) -> int | WalletError:
    if not isinstance(result, NodeRefusal):
        return quantity(result, "estimateGas")
    # Nodes agree on no code for these but in their texts; the text decides, and stays here.
    message = result.rpc_message.lower()
    if result.rpc_code == _REVERTED or "revert" in message:
        return WalletError(
            Reason.EXECUTION_REVERTED, "the call reverts", field="data", rule="runs; or set gas_limit to send it anyway"
        )
    if "insufficient funds" in message or "insufficient balance" in message or "outofbalance" in message:
        rule = "is within the balance, fee included"
        return WalletError(Reason.INSUFFICIENT_FUNDS, Reason.INSUFFICIENT_FUNDS.meaning, field="value_wei", rule=rule)
    if "gas required exceeds" in message or "out of gas" in message:
        return WalletError(Reason.GAS_LIMIT_ABOVE_BLOCK, Reason.GAS_LIMIT_ABOVE_BLOCK.meaning, field="gas_limit")
    return result
