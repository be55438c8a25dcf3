"""Transfers of one account: how soon a hash is known, and how many a second are mined, by one replica or by two."""

from __future__ import annotations

import contextlib
from pathlib import Path
from statistics import median
from time import perf_counter

from tools.bench.effort import Effort
from tools.bench.figures import Figures
from tools.bench.samples import describe_ms
from tools.bench.suite import Account, BenchFailed, Suite, running_suite
from tools.bench.sustaining import BATCH_SIZE, MAX_OUTSTANDING, sustain
from tools.stack.options import StackOptions
from tools.stack.services import SERVICE_NAMES

ONE_REPLICA = "transfers_per_s_batch_one_account"
TWO_REPLICAS = "transfers_per_s_two_replicas"
_WARM_UP_SINGLES = 10


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


async def _measure_sustained(suite: Suite, account: Account, effort: Effort, figures: Figures) -> None:
    sustained = await sustain(suite, account, effort.sustained_s)
    figures.add(
        ONE_REPLICA,
        sustained.included_per_s,
        f"told INCLUDED within {effort.sustained_s:g} s, batches of {BATCH_SIZE}, ≤ {MAX_OUTSTANDING:,} outstanding",
    )
    figures.add(
        f"{ONE_REPLICA}_mined", sustained.mined_per_s, "the same by the chain's own count of the account's transactions"
    )
    figures.add(
        "finalized_per_s_batch_one_account",
        sustained.finalized_per_s,
        f"all {sustained.accepted:,} from the first request to the last finality; none lost, none twice",
    )
    figures.samples["sustained"] = sustained.samples


async def measure_two_replicas(directory: Path, effort: Effort, figures: Figures) -> None:
    """The same load on a stack of its own, through both gateways in turns."""
    options = StackOptions(supervised=True, replicas=dict.fromkeys(SERVICE_NAMES, 2))
    async with running_suite(directory / "two-replicas", options) as suite:
        account = await suite.account()
        for _ in range(_WARM_UP_SINGLES):
            await hash_known(suite, account)
        sustained = await sustain(suite, account, effort.sustained_s)
    how = f"the same load with two of each service on the same cores; all {sustained.accepted:,} finalized once"
    figures.add(TWO_REPLICAS, sustained.included_per_s, how)
    if ONE_REPLICA in figures.values:
        ratio = sustained.included_per_s / figures.values[ONE_REPLICA]
        figures.add("two_replicas_vs_one", ratio, "transfers/s with two of each to transfers/s with one")
    figures.samples["sustained_two_replicas"] = sustained.samples
