"""Questions to peers about many transfers at once: one answer or error each, and when an error means "ask again"."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from services.core.errors import Code, Reason, WalletError
from services.gateway.transfer import Transfer
from services.runtime.rpc_errors import from_item_error

Answer = TypeVar("Answer")

SINGLE_TIMEOUT_S = 10.0
BATCH_TIMEOUT_S = 30.0
# Calls at once, where there is no batch call.
CALLS_AT_ONCE = 16
# Not now, or outcome unknown: the step is asked again. Everything else is an answer.
_RETRIED = frozenset({Code.UNAVAILABLE, Code.ABORTED, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.RESOURCE_EXHAUSTED})
# A broken chain, and clocks that are apart, are for an operator to mend; until then their transfers wait.
_WAITED_FOR = frozenset({Reason.CHAIN_BROKEN, Reason.CLOCK_SKEW})
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 2.0


def is_retried(error: WalletError) -> bool:
    return error.reason.code in _RETRIED or error.reason in _WAITED_FOR


def retry_delay_s(attempts: int) -> float:
    return min(_LONGEST_DELAY_S, _FIRST_DELAY_S * float(1 << min(attempts, 8)))


@dataclass
class Round:
    """What one run over a group finds out."""

    failures: list[tuple[Transfer, WalletError]] = field(default_factory=list)
    postponed: list[tuple[Transfer, WalletError]] = field(default_factory=list)

    def sort(
        self, transfers: Sequence[Transfer], answers: Sequence[Answer | WalletError]
    ) -> list[tuple[Transfer, Answer]]:
        """The answers that are answers; refusals go to `failures`, the rest to `postponed`."""
        answered: list[tuple[Transfer, Answer]] = []
        for transfer, answer in zip(transfers, answers, strict=True):
            if not isinstance(answer, WalletError):
                answered.append((transfer, answer))
            elif is_retried(answer):
                self.postponed.append((transfer, answer))
            else:
                self.failures.append((transfer, answer))
        return answered


async def ask(
    items: Sequence[Any],
    single: Callable[[Any], Awaitable[Answer]],
    batch: Callable[[Sequence[Any]], Awaitable[list[Answer | WalletError]]],
) -> list[Answer | WalletError]:
    """One answer or error an item. A batch that is refused as a whole is asked item by item: no neighbour suffers."""
    if not items:
        return []
    if len(items) == 1:
        return await ask_each(items, single)
    try:
        answers = await batch(items)
    except WalletError as error:
        if is_retried(error):
            return [error for _ in items]
        return await ask_each(items, single)
    if len(answers) != len(items):
        raise WalletError(Reason.INTERNAL, "a batch was answered with another number of results")
    return answers


async def ask_each(items: Sequence[Any], single: Callable[[Any], Awaitable[Answer]]) -> list[Answer | WalletError]:
    turns = asyncio.Semaphore(CALLS_AT_ONCE)

    async def one(item: Any) -> Answer | WalletError:
        async with turns:
            try:
                return await single(item)
            except WalletError as error:
                return error

    return list(await asyncio.gather(*(one(item) for item in items)))


def item_result(result: Any, name: str) -> Any:
    """The item of a batch's reply, or its error."""
    return getattr(result, name) if result.WhichOneof("result") == name else from_item_error(result.error)
