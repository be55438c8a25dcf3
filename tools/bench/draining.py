"""A backlog: transfers that were accepted while nothing could be signed, and how fast they go once something can."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from time import perf_counter
from typing import Any

from services.runtime.db import Database
from tools.bench.effort import Effort
from tools.bench.figures import Figures
from tools.bench.suite import Account, BenchFailed, Suite
from tools.bench.transferring import ONE_REPLICA
from tools.bench.usage import cpu_seconds

_BATCH_SIZE = 1_000
_LOOK_S = 0.25
# Slower than this is no drain.
_LEAST_PER_S = 20.0
_SIGNER = "signer"
# What is waited for, in the order in which it comes, and the transfers that it is true of.
_MILESTONES = {
    "hash_known": "tx_hash IS NOT NULL",
    "included": "state IN ('INCLUDED', 'SAFE', 'FINALIZED')",
    "finalized": "state = 'FINALIZED'",
}


async def measure_backlog(suite: Suite, effort: Effort, figures: Figures) -> None:
    account, transfers = await suite.account(), effort.backlog
    database = suite.open_database()
    try:
        await suite.stack.kill(_SIGNER, signal.SIGTERM)
        ids = {
            transfer_id
            for _ in range(transfers // _BATCH_SIZE)
            for transfer_id in await suite.transfer_batch(account, _BATCH_SIZE)
        }
        if len(ids) != transfers:
            raise BenchFailed(f"{transfers} transfers were asked for and {len(ids)} accepted")
        launched = perf_counter()
        await suite.stack.launch(_SIGNER)
        serving, before = perf_counter(), cpu_seconds(suite.stack)
        reached, samples = await _drain(database, account, transfers, serving)
        usage = {name: spent - before[name] for name, spent in cpu_seconds(suite.stack).items()}
        await _check_once(suite, database, account, ids)
    finally:
        await database.close()
    since = f"{transfers:,} accepted while the signer was away, from its return"
    figures.add("backlog_drain_per_s", transfers / reached["included"], f"{since} until the last was told INCLUDED")
    figures.add("backlog_hash_known_per_s", transfers / reached["hash_known"], f"{since} until all hashes were known")
    figures.add("backlog_finalized_per_s", transfers / reached["finalized"], f"{since} to the last finality; each once")
    if ONE_REPLICA in figures.values:
        ratio = figures.values["backlog_drain_per_s"] / figures.values[ONE_REPLICA]
        figures.add("backlog_drain_vs_batch", ratio, f"to {ONE_REPLICA}")
    figures.samples["backlog"] = {
        "transfers": transfers,
        "signer_started_in_s": serving - launched,
        "reached_after_s": reached,
        "progress": samples,
        "cpu_us_per_transfer": {name: round(spent / transfers * 1e6) for name, spent in usage.items()},
    }


async def _drain(
    database: Database, account: Account, transfers: int, began: float
) -> tuple[dict[str, float], list[list[float]]]:
    """Seconds after `began` until each milestone was reached by all; and [seconds, how many at each milestone]."""
    columns = ", ".join(f"count(*) FILTER (WHERE {condition})" for condition in _MILESTONES.values())
    statement = f"SELECT {columns} FROM gateway.transfers WHERE account_id = $1"  # noqa: S608 - constants
    reached: dict[str, float] = {}
    samples: list[list[float]] = []
    while len(reached) < len(_MILESTONES):
        await asyncio.sleep(_LOOK_S)
        ((*counts,),) = await database.rows(statement, account.id)
        elapsed = perf_counter() - began
        samples.append([round(elapsed, 2), *counts])
        reached |= {
            name: elapsed
            for name, count in zip(_MILESTONES, counts, strict=True)
            if count == transfers and name not in reached
        }
        if elapsed > transfers / _LEAST_PER_S:
            raise BenchFailed(f"of {transfers} transfers {counts} are {list(_MILESTONES)} after {elapsed:.0f} s")
    return reached, samples


async def _check_once(suite: Suite, database: Database, account: Account, ids: set[str]) -> None:
    """Each of these is finalized with a transaction of its own, and the chain has these and no others."""
    rows = await database.rows(
        "SELECT transfer_id, tx_hash FROM gateway.transfers WHERE account_id = $1 AND state = 'FINALIZED'", account.id
    )
    hashes = {"0x" + row["tx_hash"].hex() for row in rows if row["transfer_id"] in ids}
    mined = await _mined(suite, account)
    if len(hashes) != len(ids) or set(mined) != hashes or mined.total() != len(ids):
        raise BenchFailed(f"{len(ids)} accepted, {len(hashes)} finalized, {mined.total()} mined, {len(mined)} distinct")


async def _mined(suite: Suite, account: Account) -> Counter[str]:
    """Hash → how often the chain has it, of the account's transactions."""
    sender, mined = "0x" + account.address.hex(), Counter[str]()
    wanted = await suite.transactions_of(account)
    number = int(await suite.chain("eth_blockNumber"), 16)
    # The account is new: its transactions are in the latest blocks.
    while mined.total() < wanted and number >= 0:
        block: dict[str, Any] = await suite.chain("eth_getBlockByNumber", hex(number), True)
        mined.update(tx["hash"] for tx in block["transactions"] if tx["from"] == sender)
        number -= 1
    return mined
