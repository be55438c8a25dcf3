"""What k of n nodes say alike."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from services.core.errors import Reason, WalletError
from services.runtime.node_answer import NodeRefusal

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Agreement(Generic[T]):
    """An answer and the names of the nodes that gave it."""

    value: T
    nodes: tuple[str, ...]


class Votes(Generic[T]):
    """The answers to one question as they come in. `normalise` keeps what is to be equal."""

    def __init__(self, needed: int, normalise: Callable[[Any], T]) -> None:
        self._needed = needed
        self._normalise = normalise
        self._votes: list[tuple[T, list[str]]] = []
        self._refusals: dict[int, list[NodeRefusal]] = {}
        self._silent: list[str] = []

    @property
    def groups(self) -> list[list[str]]:
        """The names of the nodes, together where they answered alike."""
        return [names for _, names in self._votes]

    def count(self, name: str, answer: asyncio.Future[Any]) -> None:
        """Add the finished `answer` of the node `name`."""
        try:
            value = self._normalise(answer.result())
        except NodeRefusal as refusal:
            self._refusals.setdefault(refusal.rpc_code, []).append(refusal)
            return
        except (WalletError, ValueError, TypeError, KeyError) as error:
            self._silent.append(name)
            _log.warning("a node gives no usable answer", extra={"node": name, "cause": _cause(error)})
            return
        for known, names in self._votes:
            if known == value:
                names.append(name)
                return
        self._votes.append((value, [name]))

    def agreement(self) -> Agreement[T] | None:
        """What enough nodes answered; None while none has enough."""
        for value, names in self._votes:
            if len(names) >= self._needed:
                return Agreement(value, tuple(names))
        return None

    def failure(self, chain_id: str, what: str) -> WalletError:
        """The error of a question that every node has answered, or failed to, without agreement."""
        for same in self._refusals.values():
            if len(same) >= self._needed:
                return same[0]
        if len(self._votes) > 1 or self._refusals:
            return WalletError(
                Reason.NODES_DISAGREE,
                Reason.NODES_DISAGREE.meaning,
                chain_id=chain_id,
                method=what,
                required=self._needed,
            )
        return WalletError(
            Reason.NODE_UNAVAILABLE,
            Reason.NODE_UNAVAILABLE.meaning,
            chain_id=chain_id,
            method=what,
            required=self._needed,
            answered=sum(len(names) for names in self.groups),
            nodes=" ".join(sorted(self._silent)),
        )


def _cause(error: Exception) -> str:
    # A WalletError of a node quotes no URL; the text of anything else stays out.
    return str(error) if isinstance(error, WalletError) else type(error).__name__
