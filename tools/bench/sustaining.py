"""Transfers of one account in batches, as many as are mined, for as long as one likes."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from tools.bench.suite import Account, BenchFailed, Suite
from tools.bench.usage import cpu_seconds, own_cpu_seconds

BATCH_SIZE = 250
MAX_OUTSTANDING = 1_500
# Caches and the backlog fill before the window opens.
_RAMP_S = 5.0
_TOLD_WITHIN_S = 30.0
_PAGE = 200


@dataclass(frozen=True)
class Sustained:
    """Rates in transfers per second. All `accepted` were finalized, none of them twice."""

    included_per_s: float
    # By the chain's own count of the account's transactions.
    mined_per_s: float
    # From the first request to the last finality.
    finalized_per_s: float
    accepted: int
    samples: dict[str, Any]


class _Load:
    """Batches one after another, as long as few enough transfers are outstanding."""

    def __init__(self, suite: Suite, account: Account) -> None:
        self._suite = suite
        self._account = account
        self._outstanding = 0
        self._changed = asyncio.Condition()
        self.accepted = 0
        # (when the gateway told so, transfers) of each batch whose last transfer, and so every one, was mined.
        self.mined: list[tuple[float, int]] = []
        self.finalized_at = 0.0

    async def run(self, until: float) -> None:
        """Offer load until `until` (perf_counter), then wait until everything is finalized."""
        async with asyncio.TaskGroup() as followers:
            while perf_counter() < until:
                async with self._changed:
                    await self._changed.wait_for(lambda: self._outstanding + BATCH_SIZE <= MAX_OUTSTANDING)
                    self._outstanding += BATCH_SIZE
                transfers = await self._suite.transfer_batch(self._account, BATCH_SIZE)
                self.accepted += len(transfers)
                followers.create_task(self._follow(transfers))

    async def _follow(self, transfers: Sequence[str]) -> None:
        """Nonces go up within a batch: the last one mined, all are."""
        included = False
        async for event in self._suite.follow(transfers[-1]):
            if event["state"] == "FAILED":
                raise BenchFailed(f"{transfers[-1]} failed: {event['failure']}")
            if not included and event["state"] in ("INCLUDED", "SAFE", "FINALIZED"):
                included = True
                self.mined.append((perf_counter(), len(transfers)))
                async with self._changed:
                    self._outstanding -= len(transfers)
                    self._changed.notify_all()
        self.finalized_at = max(self.finalized_at, perf_counter())


async def sustain(suite: Suite, account: Account, seconds: float) -> Sustained:
    """Raises BenchFailed when a transfer is lost, or mined twice."""
    load = _Load(suite, account)
    first = await suite.transactions_of(account)
    started_at, started = datetime.now(UTC), perf_counter()
    opened, closed = started + _RAMP_S, started + _RAMP_S + seconds
    running = asyncio.create_task(load.run(closed))
    try:
        await _sleep_until(opened, running)
        before, own_before = cpu_seconds(suite.stack), own_cpu_seconds()
        nonce_opened = await suite.transactions_of(account)
        await _sleep_until(closed, running)
        nonce_closed = await suite.transactions_of(account)
        own_cpu = own_cpu_seconds() - own_before
        usage = {name: seconds - before[name] for name, seconds in cpu_seconds(suite.stack).items()}
        await running
    finally:
        running.cancel()
    await _check_states(suite, account, load.accepted, started_at)
    last = await suite.transactions_of(account)
    if last - first != load.accepted:
        raise BenchFailed(f"{load.accepted} transfers were accepted and {last - first} mined")
    mined = max(nonce_closed - nonce_opened, 1)
    return Sustained(
        included_per_s=sum(count for at, count in load.mined if opened <= at < closed) / seconds,
        mined_per_s=(nonce_closed - nonce_opened) / seconds,
        finalized_per_s=load.accepted / (load.finalized_at - started),
        accepted=load.accepted,
        samples={
            "seconds": seconds,
            "accepted": load.accepted,
            "included_batches": [[round(at - started, 3), count] for at, count in load.mined],
            "drained_after_s": load.finalized_at - started,
            "load_generator_cores": own_cpu / seconds,
            "cores": {name: round(spent / seconds, 3) for name, spent in usage.items()},
            "cpu_us_per_transfer": {name: round(spent / mined * 1e6) for name, spent in usage.items()},
        },
    )


async def _sleep_until(at: float, running: asyncio.Task[None]) -> None:
    """Until `at`, or until the load has ended, which it may only by an error."""
    await asyncio.wait({running}, timeout=max(at - perf_counter(), 0.0))
    if running.done():
        running.result()


async def _check_states(suite: Suite, account: Account, accepted: int, since: datetime) -> None:
    """The last of each batch is final; those beside it in its block are told in the next pages."""
    states = await _states(suite, account, accepted, since)
    told_by = perf_counter() + _TOLD_WITHIN_S
    while states != Counter({"FINALIZED": accepted}) and perf_counter() < told_by:
        await asyncio.sleep(0.5)
        states = await _states(suite, account, accepted, since)
    if states != Counter({"FINALIZED": accepted}):
        raise BenchFailed(f"{accepted} transfers were accepted, and {dict(states)} became of them")


async def _states(suite: Suite, account: Account, wanted: int, since: datetime) -> Counter[str]:
    """States of the account's newest `wanted` transfers, all accepted after `since`."""
    states: Counter[str] = Counter()
    query: dict[str, Any] = {"account_id": account.id, "limit": _PAGE}
    for _ in itertools.repeat(None, wanted // _PAGE + 1):
        page = await suite.get("/v1/transfers", **query)
        for transfer in page["transfers"]:
            if states.total() < wanted and datetime.fromisoformat(transfer["created_at"]) >= since:
                states[transfer["state"]] += 1
        if page["next"] is None or states.total() == wanted:
            break
        query["cursor"] = page["next"]
    return states
