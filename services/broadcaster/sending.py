"""Rounds of requests to the nodes of one chain, in nonce order, up to `_ROUND` transactions at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from services.broadcaster.request_store import Due, RequestStore
from services.broadcaster.requesting import Requester, error_facts
from services.broadcaster.submission import State
from services.core.canonical import to_hex
from services.core.errors import Code, Reason, WalletError
from services.runtime.chain_nodes import ChainNodes
from services.runtime.node import Node
from services.runtime.node_answer import quantity

_log = logging.getLogger(__name__)

_ROUND = 256  # transactions
_ROUND_BYTES = 4 * 1024 * 1024  # of raw transactions, unless one is larger
_IDLE_S = 0.25  # other replicas take submissions in too
_RETRY_S = 0.5
_MAX_OPEN_ROUNDS = 4


class Sender:
    def __init__(
        self,
        store: RequestStore,
        requester: Requester,
        chain: ChainNodes,
        *,
        max_in_flight: int,
        is_behind: Callable[[], bool],
        is_held: Callable[[], bool],
    ) -> None:
        """`is_behind`: the watch has blocks of the nodes' chain before it, which may hold what seems to be pending.

        `is_held`: what is sent now might be mined where the log cannot take it.
        """
        self._store = store
        self._requester = requester
        self._chain = chain
        self._max_in_flight = max_in_flight
        self._is_behind = is_behind
        self._is_held = is_held
        self._next_nonces: dict[bytes, int] = {}
        self.wake = asyncio.Event()

    async def run(self) -> None:
        """Send what is due until cancelled, or until the lease is lost."""
        async with asyncio.TaskGroup() as rounds:
            open_rounds = asyncio.Semaphore(_MAX_OPEN_ROUNDS)
            pause_s = _RETRY_S
            while True:
                try:
                    has_more = await self._round(rounds, open_rounds)
                    pause_s = _RETRY_S
                except WalletError as error:
                    if error.reason.code is not Code.UNAVAILABLE:
                        raise
                    _log.warning("nothing can be sent now", extra=error_facts(error))
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, 5.0)
                    continue
                if not has_more:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_IDLE_S):
                            await self.wake.wait()
                self.wake.clear()

    async def _round(self, rounds: asyncio.TaskGroup, open_rounds: asyncio.Semaphore) -> bool:
        """Start a round; True when there may be more to send at once."""
        if self._is_held():
            return False
        found = await self._store.due(self._max_in_flight, _ROUND, self._chain.required, is_behind=self._is_behind())
        due = _bounded(await self._in_nonce_order(found))
        if not due:
            return False
        healthy = await self._healthy_nodes()
        await open_rounds.acquire()
        started = asyncio.Event()
        task = rounds.create_task(self._requester.serve(due, healthy, started))
        task.add_done_callback(lambda _: open_rounds.release())
        # Nonce order: the next round begins when this one is with a node, or has failed to be.
        await started.wait()
        return True

    async def _in_nonce_order(self, due: list[Due]) -> list[Due]:
        """Without the first requests that would leave a nonce out: the chain and this service know none below them."""
        unknown = {one.account for one in due if one.state is State.QUEUED} - self._next_nonces.keys()
        if unknown:
            known = await self._store.next_nonces(list(unknown))
            self._next_nonces.update({account: known.get(account, 0) for account in unknown})
        next_nonces: dict[bytes, int] = {}
        asked: set[bytes] = set()
        admitted = []
        for one in due:
            expected = next_nonces.get(one.account, self._next_nonces.get(one.account, 0))
            if one.state is State.QUEUED:
                if one.nonce > expected and one.account not in asked:
                    asked.add(one.account)
                    expected = max(expected, await self._transaction_count(one.account))
                if one.nonce > expected:
                    next_nonces[one.account] = expected
                    continue
                next_nonces[one.account] = max(expected, one.nonce + 1)
            admitted.append(one)
        self._next_nonces.update(next_nonces)
        return admitted

    async def _transaction_count(self, account: bytes) -> int:
        """The highest count that k nodes have reached: what one alone says makes no request early, or late."""
        params = [to_hex(account), "latest"]
        counts = []
        for _, answer in await self._chain.ask_all(lambda node: node.call("eth_getTransactionCount", params)):
            if isinstance(answer, WalletError):
                _log.warning("a node tells no transaction count", extra=error_facts(answer))
                continue
            with suppress(WalletError):
                counts.append(quantity(answer, "nonce"))
        if len(counts) < self._chain.required:
            raise WalletError(Reason.NODE_UNAVAILABLE, Reason.NODE_UNAVAILABLE.meaning, chain_id=self._chain.chain_id)
        return sorted(counts, reverse=True)[self._chain.required - 1]

    async def _healthy_nodes(self) -> list[Node]:
        """Nodes that greet, in the configured order; those that failed lately only if there are too few others.

        Raises:
            WalletError: NODE_UNAVAILABLE when there is none.
        """
        greeted: set[str] = set()
        for node, answer in await self._chain.ask_all(lambda node: node.greet()):
            if isinstance(answer, WalletError):
                _log.warning("a node does not greet", extra=error_facts(answer))
            else:
                greeted.add(node.name)
        known = [node for node in self._chain.nodes if node.name in greeted]
        rested = [node for node in known if not node.is_resting]
        healthy = rested if len(rested) >= self._chain.required else known
        if not healthy:
            raise WalletError(Reason.NODE_UNAVAILABLE, "no node answers", chain_id=self._chain.chain_id)
        return healthy


def _bounded(due: list[Due]) -> list[Due]:
    size = 0
    for count, one in enumerate(due):
        size += len(one.raw_tx)
        if size > _ROUND_BYTES and count:
            return due[:count]
    return due
