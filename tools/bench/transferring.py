"""Transfers of one account: how soon a hash is known, and how many a second are mined for as long as one likes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median
from time import perf_counter
from typing import Any

from tools.bench.effort import Effort
from tools.bench.figures import Figures
from tools.bench.samples import describe_ms
from tools.bench.suite import Account, BenchFailed, Suite
from tools.bench.usage import cpu_seconds, own_cpu_seconds

_BATCH_SIZE = 250
_MAX_OUTSTANDING = 1_500
# Caches and the backlog fill before the window opens.
_RAMP_S = 5.0
_TOLD_WITHIN_S = 30.0
_PAGE = 200


async def measure_transfers(suite: Suite, effort: Effort, figures: Figures) -> None:
    account = await suite.account()
    figures.add("max_in_flight", suite.stack.options.max_in_flight, "unmined transfers of an account at the nodes")
    await _measure_hash_known(suite, account, effort, figures)
    await _measure_sustained(suite, account, effort, figures)


async def hash_known(suite: Suite, account: Account) -> tuple[str, float, float]:
    """(transfer id, seconds until accepted, seconds from then until its hash was told by an event)."""
    asked = perf_counter()
    transfer_id = await suite.transfer(account)
    accepted = perf_counter()
    async with contextlib.aclosing(suite.follow(transfer_id)) as events:
        async for event in events:
            if event.get("tx_hash"):
                return transfer_id, accepted - asked, perf_counter() - accepted
    raise BenchFailed(f"{transfer_id} ended without a hash")


async def _measure_hash_known(suite: Suite, account: Account, effort: Effort, figures: Figures) -> None:
    await hash_known(suite, account)
    accepted: list[float] = []
    known: list[float] = []
    transfer_id = ""
    for _ in range(effort.hash_known_transfers):
        transfer_id, until_accepted, until_known = await hash_known(suite, account)
        accepted.append(until_accepted)
        known.append(until_known)
    await suite.wait_finalized(transfer_id)
    figures.add("accept_p50_ms", median(accepted) * 1000, "POST /v1/transfers, one at a time")
    figures.add("hash_known_p50_ms", median(known) * 1000, "from the 202 to the event with the hash, one at a time")
    figures.samples["accept"] = describe_ms(accepted)
    figures.samples["hash_known"] = describe_ms(known)


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
                    await self._changed.wait_for(lambda: self._outstanding + _BATCH_SIZE <= _MAX_OUTSTANDING)
                    self._outstanding += _BATCH_SIZE
                transfers = await self._suite.transfer_batch(self._account, _BATCH_SIZE)
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


async def _measure_sustained(suite: Suite, account: Account, effort: Effort, figures: Figures) -> None:
    load = _Load(suite, account)
    first = int(await suite.chain("eth_getTransactionCount", _hex(account), "latest"), 16)
    started_at, started = datetime.now(UTC), perf_counter()
    opened, closed = started + _RAMP_S, started + _RAMP_S + effort.sustained_s
    running = asyncio.create_task(load.run(closed))
    usage: dict[str, float] = {}
    own_cpu = 0.0
    try:
        await _sleep_until(opened, running)
        before, own_before = cpu_seconds(suite.stack), own_cpu_seconds()
        nonce_opened = int(await suite.chain("eth_getTransactionCount", _hex(account), "latest"), 16)
        await _sleep_until(closed, running)
        nonce_closed = int(await suite.chain("eth_getTransactionCount", _hex(account), "latest"), 16)
        own_cpu = own_cpu_seconds() - own_before
        usage = {name: seconds - before[name] for name, seconds in cpu_seconds(suite.stack).items()}
        await running
    finally:
        running.cancel()
    counted = sum(count for at, count in load.mined if opened <= at < closed)
    # The last of each batch is final; those beside it in its block are told in the next pages.
    states = await _states(suite, account, load.accepted, started_at)
    told_by = perf_counter() + _TOLD_WITHIN_S
    while states != Counter({"FINALIZED": load.accepted}) and perf_counter() < told_by:
        await asyncio.sleep(0.5)
        states = await _states(suite, account, load.accepted, started_at)
    if states != Counter({"FINALIZED": load.accepted}):
        raise BenchFailed(f"{load.accepted} transfers were accepted, and {dict(states)} became of them")
    last = int(await suite.chain("eth_getTransactionCount", _hex(account), "latest"), 16)
    if last - first != load.accepted:
        raise BenchFailed(f"{load.accepted} transfers were accepted and {last - first} mined")
    figures.add(
        "transfers_per_s_batch_one_account",
        counted / effort.sustained_s,
        f"told INCLUDED within {effort.sustained_s:g} s, batches of {_BATCH_SIZE}, ≤ {_MAX_OUTSTANDING:,} outstanding",
    )
    figures.add(
        "transfers_per_s_batch_one_account_mined",
        (nonce_closed - nonce_opened) / effort.sustained_s,
        "the same by the chain's own count of the account's transactions",
    )
    figures.add(
        "finalized_per_s_batch_one_account",
        load.accepted / (load.finalized_at - started),
        f"all {load.accepted:,} from the first request to the last finality; none lost, none twice",
    )
    mined = max(nonce_closed - nonce_opened, 1)
    figures.samples["sustained"] = {
        "seconds": effort.sustained_s,
        "accepted": load.accepted,
        "included_batches": [[round(at - started, 3), count] for at, count in load.mined],
        "drained_after_s": load.finalized_at - started,
        "load_generator_cores": own_cpu / effort.sustained_s,
        "cores": {name: round(seconds / effort.sustained_s, 3) for name, seconds in usage.items()},
        "cpu_us_per_transfer": {name: round(seconds / mined * 1e6) for name, seconds in usage.items()},
    }


def _hex(account: Account) -> str:
    return "0x" + account.address.hex()


async def _sleep_until(at: float, running: asyncio.Task[None]) -> None:
    """Until `at`, or until the load has ended, which it may only by an error."""
    await asyncio.wait({running}, timeout=max(at - perf_counter(), 0.0))
    if running.done():
        running.result()


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
