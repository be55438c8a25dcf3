"""How long work stood still after a fault: from the times at which transfers changed their state."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from services.runtime.db import Database
from tools.chaos.faults import Injected

# Ours to carry on: what a transfer does after these it does by the chain's leave.
_OWN_STATES = frozenset({"ACCEPTED", "BUILT", "SIGNED"})


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a fault on a target, and seconds of the worst transfer under way then; None: none was."""

    fault: str
    target: str
    injected: int
    median_s: float | None
    longest_s: float | None


async def summarise(database: Database, injected: Iterable[Injected]) -> list[Row]:
    rows = await database.rows(
        "SELECT transfer_id, state, extract(epoch FROM at)::float8 AS at FROM gateway.transfer_events "
        "ORDER BY transfer_id, event_id"
    )
    stays = sorted(_stays([(row["transfer_id"], row["state"], row["at"]) for row in rows]))
    begins = [begin for begin, _ in stays]
    worst: defaultdict[tuple[str, str], list[float | None]] = defaultdict(list)
    for fault in injected:
        standing = [end for _, end in stays[: bisect_right(begins, fault.at)] if end > fault.at]
        worst[fault.name, fault.target].append(max(standing) - fault.at if standing else None)
    return [
        Row(name, target, len(all_), *_median_and_longest([one for one in all_ if one is not None]))
        for (name, target), all_ in sorted(worst.items())
    ]


def _stays(events: Sequence[tuple[str, str, float]]) -> Iterable[tuple[float, float]]:
    """(begin, end) of each stay in a state that ends by our own work."""
    for (transfer, state, begin), (next_transfer, _, end) in pairwise(events):
        if transfer == next_transfer and state in _OWN_STATES:
            yield begin, end


def _median_and_longest(seconds: list[float]) -> tuple[float | None, float | None]:
    if not seconds:
        return None, None
    return sorted(seconds)[len(seconds) // 2], max(seconds)
