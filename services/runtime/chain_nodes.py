"""The nodes of one chain: the first that answers, all of them at once, or what k of them say alike."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from services.core.errors import Reason, WalletError
from services.runtime import attributes
from services.runtime.agreement import Agreement, Votes
from services.runtime.json_rpc import Call
from services.runtime.metric_names import WALLET_NODE_DISAGREEMENTS
from services.runtime.metrics import counter
from services.runtime.node import Node
from services.runtime.node_answer import NodeRefusal

_GRACE_S = 0.25  # for the other nodes, once k have answered

_log = logging.getLogger(__name__)
_disagreements = counter(WALLET_NODE_DISAGREEMENTS)

T = TypeVar("T")


class ChainNodes:
    """The nodes of one chain."""

    def __init__(self, chain_id: str, nodes: Sequence[Node], required: int) -> None:
        self.chain_id = chain_id
        self.nodes = tuple(nodes)
        self.required = required

    def preferred(self) -> list[Node]:
        """In the configured order, those that failed lately last."""
        return sorted(self.nodes, key=lambda node: node.is_resting)

    def named(self, name: str) -> Node | None:
        return next((node for node in self.nodes if node.name == name), None)

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        """The result of the first node that answers. One node's word: use `agree` for what must be true.

        Raises:
            WalletError: NODE_UNAVAILABLE of the last node asked; a NodeRefusal at once.
        """
        (result,) = await self.call_many([Call(method, params)])
        if isinstance(result, WalletError):
            raise result
        return result

    async def call_many(self, calls: Sequence[Call]) -> list[Any]:
        """One batch to the first node that answers; see `Node.call_many`."""
        failure = WalletError(Reason.NODE_UNAVAILABLE, "no node is configured", chain_id=self.chain_id)
        for node in self.preferred():
            try:
                return await node.call_many(calls)
            except WalletError as error:
                failure = error
        raise failure

    async def ask_all(self, ask: Callable[[Node], Coroutine[Any, Any, T]]) -> list[tuple[Node, T | WalletError]]:
        """Put a question to every node at once; what each said, in the configured order.

        Once k nodes have answered usably the others have `_GRACE_S` more, and are left out then: one slow node of
        three delays nothing.
        """
        answers: dict[str, T | WalletError] = {}
        usable = 0
        tasks = {asyncio.ensure_future(ask(node)): node for node in self.nodes}
        try:
            while tasks:
                timeout_s = _GRACE_S if usable >= self.required else None
                done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                for task in done:
                    node = tasks.pop(task)
                    try:
                        answers[node.name] = task.result()
                        usable += 1
                    except WalletError as error:
                        answers[node.name] = error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [(node, answers[node.name]) for node in self.nodes if node.name in answers]

    async def agree(
        self,
        method: str,
        params: Sequence[Any] = (),
        k: int | None = None,
        normalise: Callable[[Any], T] = lambda result: result,
    ) -> Agreement[T]:
        """Ask all nodes at once; the answer that k of them (default `required`) give, as soon as k gave it.

        `normalise` keeps what is to be equal, and raises WalletError or ValueError where the form is wrong.

        Raises:
            WalletError: NODES_DISAGREE when two answers differ and none has k nodes; NODE_UNAVAILABLE when fewer than
                k answered; a NodeRefusal when k nodes refuse with the same code.
        """
        return await self.agree_by(lambda node: node.call(method, params), k, normalise, method)

    async def agree_by(
        self,
        ask: Callable[[Node], Coroutine[Any, Any, Any]],
        k: int | None,
        normalise: Callable[[Any], T],
        what: str,
    ) -> Agreement[T]:
        """`agree` over any question: `ask` puts it to one node; `what` names it in errors and logs."""
        votes = Votes(self.required if k is None else k, normalise)
        tasks = {asyncio.ensure_future(ask(node)): node for node in self.nodes}
        try:
            while tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    votes.count(tasks.pop(task).name, task)
                if agreement := votes.agreement():
                    self._note_votes(votes, what)
                    return agreement
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        failure = votes.failure(self.chain_id, what)
        if not isinstance(failure, NodeRefusal):
            self._note_votes(votes, what)
        raise failure

    def _note_votes(self, votes: Votes[T], what: str) -> None:
        if len(votes.groups) > 1:
            self.note_disagreement(what, votes.groups)

    def note_disagreement(self, what: str, groups: Sequence[Sequence[str]]) -> None:
        """Count and log that nodes answered `what` differently; `groups` are the names that answered alike."""
        _disagreements.add(1, {attributes.WALLET_CHAIN_ID: self.chain_id, attributes.RPC_METHOD: what})
        _log.warning(
            "nodes disagree",
            extra={"chain_id": self.chain_id, "method": what, "nodes": [sorted(names) for names in groups]},
        )
