"""Waiting for transfers to end, with something to look at meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tools.goldenlink.client import Client
from tools.goldenlink.exits import Exit, Failure
from tools.goldenlink.output import console, errors

ENDED = frozenset({"FINALIZED", "FAILED"})
_POLL_S = 0.5
_LONGEST_WAIT_S = 3_600.0


def follow_one(client: Client, transfer: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """The transfer once it has ended; prints each state as it comes unless `quiet`."""
    for event in client.events(f"/v1/transfers/{transfer['id']}/events"):
        if not quiet:
            console.print(f"[dim]{event['at'][11:23]}[/dim]  {event['state']}")
    ended: dict[str, Any] = client.get(f"/v1/transfers/{transfer['id']}")
    return ended


def follow_many(client: Client, transfers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The transfers once all have ended, in their order; a progress bar on standard error."""
    ended: dict[str, dict[str, Any]] = {}
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    give_up_at = time.monotonic() + _LONGEST_WAIT_S
    with Progress(*columns, console=errors) as progress:
        bar = progress.add_task("accepted", total=len(transfers))
        while len(ended) < len(transfers):
            states = Counter[str]()
            for transfer in _newest(client, {one["id"] for one in transfers} - ended.keys()):
                states[transfer["state"]] += 1
                if transfer["state"] in ENDED:
                    ended[transfer["id"]] = transfer
            rest = ", ".join(f"{count} {state}" for state, count in sorted(states.items()) if state not in ENDED)
            progress.update(bar, completed=len(ended), description=rest or "ended")
            if time.monotonic() > give_up_at:
                raise Failure(Exit.UNAVAILABLE, f"{len(transfers) - len(ended)} transfers have not ended in an hour")
            if len(ended) < len(transfers):
                time.sleep(_POLL_S)
    return [ended[transfer["id"]] for transfer in transfers]


def _newest(client: Client, wanted: set[str]) -> list[dict[str, Any]]:
    """The wanted transfers, page by page from the newest."""
    found: list[dict[str, Any]] = []
    cursor = None
    oldest = min(wanted)
    while True:
        page = client.get("/v1/transfers", limit=200, cursor=cursor)
        found += [transfer for transfer in page["transfers"] if transfer["id"] in wanted]
        cursor = page["next"]
        # Ids grow with time: nothing older is wanted.
        if cursor is None or len(found) == len(wanted) or cursor < oldest:
            return found
