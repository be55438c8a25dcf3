"""How long work stood still after a fault: from the times at which transfers changed their state."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from itertools import accumulate

from services.runtime.db import Database
from tools.chaos.faults import Injected

# Ours to carry on: what a transfer does after these it does by the chain's leave.
_OWN_STATES = frozenset({"ACCEPTED", "BUILT", "SIGNED"})
_PAGE = 20_000


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a fault on a target, and seconds of the worst transfer under way then; None: none was."""

    fault: str
    target: str
    injected: int
    median_s: float | None
    longest_s: float | None


async def summarise(database: Database, injected: Iterable[Injected]) -> list[Row]:
    stays = sorted([stay async for stay in _stays(database)])
    begins = [begin for begin, _ in stays]
    # The latest end of what had begun by then.
    latest = list(accumulate((end for _, end in stays), max))
    worst: defaultdict[tuple[str, str], list[float | None]] = defaultdict(list)
    for fault in injected:
        begun = bisect_right(begins, fault.at)
        stood_s = latest[begun - 1] - fault.at if begun else 0.0
        worst[fault.name, fault.target].append(stood_s if stood_s > 0 else None)
    return [
        Row(name, target, len(all_), *_median_and_longest([one for one in all_ if one is not None]))
        for (name, target), all_ in sorted(worst.items())
    ]


async def _stays(database: Database) -> AsyncIterator[tuple[float, float]]:
    """(begin, end) of each stay in a state that ends by our own work."""
    transfer, event, state, begin = "", 0, "", 0.0
    while True:
        page = await database.rows(
            "SELECT transfer_id, event_id, state, extract(epoch FROM at)::float8 FROM gateway.transfer_events "
            "WHERE (transfer_id, event_id) > ($1, $2) ORDER BY transfer_id, event_id LIMIT $3",
            transfer,
            event,
            _PAGE,
        )
        for next_transfer, next_event, next_state, end in page:
            if next_transfer == transfer and state in _OWN_STATES:
                yield begin, end
            transfer, event, state, begin = next_transfer, next_event, next_state, end
        if len(page) < _PAGE:
            return


def _median_and_longest(seconds: list[float]) -> tuple[float | None, float | None]:
    if not seconds:
        return None, None
    return sorted(seconds)[len(seconds) // 2], max(seconds)
