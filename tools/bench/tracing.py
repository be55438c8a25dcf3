"""What tracing costs: two stacks beside each other, one with it and one without, in turns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter

from tools.bench.effort import Effort
from tools.bench.figures import Figures
from tools.bench.suite import Account, Suite, running_suite
from tools.bench.transferring import hash_known
from tools.bench.usage import cpu_seconds, of_wallet
from tools.stack.options import StackOptions

_BATCH_SIZE = 200
_WARM_UP_SINGLES = 10
# Longer than the exporter's schedule (5 s): spans that wait are exported, and their cost counted.
_FLUSH_S = 6.0


class _Side:
    """One of the two stacks, and what transfers have cost it."""

    def __init__(self, suite: Suite, account: Account) -> None:
        self.suite = suite
        self.account = account
        self.idle_cores = 0.0
        # CPU-seconds by process, transfers and wall seconds, by kind of load.
        self.cpu: dict[str, dict[str, float]] = {}
        self.transfers: dict[str, int] = {}
        self.wall_s: dict[str, float] = {}

    async def measure_idle(self, seconds: float) -> None:
        before = of_wallet(cpu_seconds(self.suite.stack))
        await asyncio.sleep(seconds)
        self.idle_cores = (of_wallet(cpu_seconds(self.suite.stack)) - before) / seconds

    async def measure(self, kind: str, load: Callable[[_Side], Awaitable[int]]) -> None:
        """Run a load to its last finality and its last exported span."""
        before, started = cpu_seconds(self.suite.stack), perf_counter()
        count = await load(self)
        await asyncio.sleep(_FLUSH_S)
        spent = self.cpu.setdefault(kind, {})
        for name, seconds in cpu_seconds(self.suite.stack).items():
            spent[name] = spent.get(name, 0.0) + seconds - before[name]
        self.transfers[kind] = self.transfers.get(kind, 0) + count
        self.wall_s[kind] = self.wall_s.get(kind, 0.0) + perf_counter() - started

    def per_transfer(self, kind: str, *, without_idle: bool = False) -> float:
        """CPU-seconds of the wallet's processes; `without_idle` takes off what they use when nothing is asked."""
        spent = of_wallet(self.cpu[kind])
        if without_idle:
            spent -= self.idle_cores * self.wall_s[kind]
        return spent / self.transfers[kind]

    def spans(self) -> int:
        return int(self.suite.sql("SELECT count(*) FROM tracestore.spans"))


async def measure_tracing(directory: Path, effort: Effort, figures: Figures) -> None:
    async with AsyncExitStack() as stacks:
        on, off = [
            await _side(stacks, directory / name, StackOptions(tracing=tracing, supervised=True))
            for name, tracing in (("tracing-on", True), ("tracing-off", False))
        ]

        async def singles(side: _Side) -> int:
            return await _transfer_singly(side, effort.tracing_singles)

        async def batches(side: _Side) -> int:
            return await _transfer_in_batches(side, effort.tracing_batches)

        for side in (on, off):
            await _transfer_singly(side, _WARM_UP_SINGLES)
            await _transfer_in_batches(side, 1)
        await asyncio.sleep(_FLUSH_S)
        spans = on.spans()
        for side in (on, off):
            await side.measure_idle(effort.idle_s)
        for _ in range(effort.tracing_rounds):
            for side in (on, off):
                await side.measure("single", singles)
        spans_single = on.spans() - spans
        for _ in range(effort.tracing_rounds):
            for side in (on, off):
                await side.measure("batch", batches)
        spans_batch = on.spans() - spans - spans_single
    for kind, how in (("single", "one at a time"), ("batch", f"in batches of {_BATCH_SIZE}")):
        figures.add(
            f"tracing_cpu_overhead_{kind}",
            on.per_transfer(kind) / off.per_transfer(kind) - 1,
            f"CPU of the wallet's processes per transfer, {how}, tracing on to off, exporter in, store out",
        )
        figures.add(
            f"tracing_cpu_overhead_{kind}_without_idle",
            on.per_transfer(kind, without_idle=True) / off.per_transfer(kind, without_idle=True) - 1,
            "the same less what each stack uses when idle",
        )
    store = sum(on.cpu[kind]["tracestore"] for kind in on.cpu)
    figures.add("tracestore_cpu_us_per_span", store / (spans_single + spans_batch) * 1e6, "of the store's process")
    figures.add("spans_per_transfer_single", spans_single / on.transfers["single"])
    figures.add("spans_per_transfer_batch", spans_batch / on.transfers["batch"])
    figures.samples["tracing"] = {
        name: {
            "transfers": side.transfers,
            "wall_s": side.wall_s,
            "idle_cores": side.idle_cores,
            "cpu_ms_per_transfer": {
                kind: {name: round(seconds / side.transfers[kind] * 1000, 3) for name, seconds in spent.items()}
                for kind, spent in side.cpu.items()
            },
        }
        for name, side in (("on", on), ("off", off))
    }


async def _side(stacks: AsyncExitStack, directory: Path, options: StackOptions) -> _Side:
    suite = await stacks.enter_async_context(running_suite(directory, options))
    return _Side(suite, await suite.account())


async def _transfer_singly(side: _Side, count: int) -> int:
    transfer_id = ""
    for _ in range(count):
        transfer_id, _, _ = await hash_known(side.suite, side.account)
    # Nonces went up: the last one finalized, all are.
    await side.suite.wait_finalized(transfer_id)
    return count


async def _transfer_in_batches(side: _Side, count: int) -> int:
    last = ""
    for _ in range(count):
        last = (await side.suite.transfer_batch(side.account, _BATCH_SIZE))[-1]
    await side.suite.wait_finalized(last)
    return count * _BATCH_SIZE
