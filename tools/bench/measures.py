"""The order of a run. Measures that share a stack share its growing log, so their order is part of what they say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path

from tools.bench.appending import Entries, fill_large_log, measure_large_log, measure_small_log
from tools.bench.draining import measure_backlog
from tools.bench.effort import Effort
from tools.bench.figures import MEMORY, Figures
from tools.bench.signing import measure_signing
from tools.bench.suite import running_suite
from tools.bench.tracing import measure_tracing
from tools.bench.transferring import measure_transfers, measure_two_replicas
from tools.bench.usage import memory_bytes
from tools.bench.verifying import make_links, measure_verifier
from tools.stack.options import StackOptions

MEASURES = {
    "evidence": "appends to a small and to a large log, and the disk",
    "signing": "signatures alone and in batches, beside token, disk and gRPC",
    "verifier": "bundles of a large log",
    "transfers": "transfers of one account, one at a time and in batches",
    "backlog": "transfers that were accepted while nothing could be signed",
    "replicas": "transfers with two of each service",
    "tracing": "CPU with tracing and without",
}
# Those that have stacks of their own.
_APART = frozenset({"replicas", "tracing"})
_SETTLE_S = 2.0


async def run_measures(names: Collection[str], directory: Path, effort: Effort, say: Callable[[str], None]) -> Figures:
    """Run the named measures; memory is always looked at."""
    figures = Figures()
    if set(names) - _APART:
        say("starting a stack")
        async with running_suite(directory / "stack", StackOptions(supervised=True)) as suite:
            await asyncio.sleep(_SETTLE_S)
            at_rest = memory_bytes(suite.stack)
            account = await suite.account()
            entries = await Entries.sampled(suite, account)
            # (1) While the log is small.
            if "evidence" in names:
                say("appending to a small log")
                await measure_small_log(suite, entries, figures)
            links = await make_links(suite, await suite.account()) if "verifier" in names else []
            # (2) Signatures are entries too.
            if "signing" in names:
                say("signing")
                await measure_signing(suite, effort, figures)
            # (3) While the log is large.
            if {"evidence", "verifier"} & set(names):
                say("filling the log")
                await fill_large_log(suite, entries, effort, figures)
            if "evidence" in names:
                say("appending to a large log")
                await measure_large_log(suite, entries, figures)
            if links:
                say("verifying")
                await measure_verifier(suite, links, effort, figures)
            # (4) What makes it larger still.
            if "transfers" in names:
                say("transferring")
                await measure_transfers(suite, effort, figures)
            if "backlog" in names:
                say("draining a backlog")
                await measure_backlog(suite, effort, figures)
            await asyncio.sleep(_SETTLE_S)
            after = memory_bytes(suite.stack)
        for name, size in after.items():
            figures.add(f"{MEMORY}{name}", size / 2**20, f"{at_rest[name] / 2**20:.0f}")
        figures.samples["memory_bytes"] = {"at_rest": at_rest, "after_the_run": after}
    if "replicas" in names:
        say("transferring with two of each service")
        await measure_two_replicas(directory, effort, figures)
    if "tracing" in names:
        say("transferring with tracing and without, on two stacks")
        await measure_tracing(directory, effort, figures)
    return figures
