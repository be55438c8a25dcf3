"""Appends to the evidence log, with few entries in it and with many."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from time import perf_counter

from protos.wallet.v1 import evidence_pb2
from tools.bench.disk import syncs_per_second
from tools.bench.effort import Effort
from tools.bench.figures import Figures
from tools.bench.signing import Transactions
from tools.bench.suite import Account, BenchFailed, Suite

SMALL_LOG = 1_000
# Concurrent callers → entries that they append together: a second or two, and few enough to leave a small log small.
_CALLERS = {1: 200, 16: 800, 256: 2_048}
_WARM_UP = (16, 200)
_FILL_BATCH = 2_000
_FILL_IN_FLIGHT = 3
_FILL_TIMEOUT_S = 60.0


class Entries:
    """Intents to append: the body of a real one, each under a link of its own."""

    def __init__(self, entry: evidence_pb2.LinkEntry) -> None:
        self._entry = entry

    @classmethod
    async def sampled(cls, suite: Suite, account: Account) -> Entries:
        """Have one transaction signed, and take its intent."""
        signed = await suite.signer.SignTransaction(Transactions(account).next())
        link = await suite.evidence.GetLink(evidence_pb2.GetLinkRequest(link_id=signed.transfer_id))
        return cls(link.entries[0])

    def next(self) -> evidence_pb2.AppendEntryRequest:
        return evidence_pb2.AppendEntryRequest(
            link_id=f"bench-{secrets.token_hex(12)}",
            entry_id=self._entry.entry_id,
            kind=self._entry.kind,
            trace_id=secrets.token_hex(16),
            span_id=secrets.token_hex(8),
            body=self._entry.body,
        )


async def tree_size(suite: Suite) -> int:
    status = await suite.evidence.GetEvidenceStatus(evidence_pb2.GetEvidenceStatusRequest())
    return int(status.tree_size)


async def fill(suite: Suite, entries: Entries, size: int) -> float | None:
    """Append until the log has `size` entries; entries per second, None if nothing was to be done."""
    missing = size - await tree_size(suite)
    if missing <= 0:
        return None
    counts = [min(_FILL_BATCH, missing - done) for done in range(0, missing, _FILL_BATCH)]
    waiting = iter(counts)

    async def append() -> None:
        for count in waiting:
            request = evidence_pb2.AppendEntriesRequest(entries=[entries.next() for _ in range(count)])
            reply = await suite.evidence.AppendEntries(request, timeout=_FILL_TIMEOUT_S)
            for result in reply.results:
                if result.HasField("failure"):
                    raise BenchFailed(f"not appended: {result.failure.error.reason} {result.failure.error.message}")

    started = perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(_FILL_IN_FLIGHT):
            group.create_task(append())
    return missing / (perf_counter() - started)


async def append_rates(suite: Suite, entries: Entries) -> dict[int, float]:
    """Entries per second of AppendEntry, by the number of concurrent callers."""
    rates: dict[int, float] = {}
    for callers, count in _CALLERS.items():
        rates[callers] = await _append_together(suite, entries, callers, count)
    return rates


async def _append_together(suite: Suite, entries: Entries, callers: int, count: int) -> float:
    waiting = iter([entries.next() for _ in range(count)])
    started = perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(_append_each(suite, waiting))
    return count / (perf_counter() - started)


async def _append_each(suite: Suite, waiting: Iterator[evidence_pb2.AppendEntryRequest]) -> None:
    for request in waiting:
        await suite.evidence.AppendEntry(request)


async def measure_small_log(suite: Suite, entries: Entries, figures: Figures) -> None:
    figures.add(
        "disk_fdatasyncs_per_s",
        await asyncio.to_thread(syncs_per_second, suite.stack.directory),
        "8 KiB each, on the database's disk",
    )
    await fill(suite, entries, SMALL_LOG)
    await _append_together(suite, entries, *_WARM_UP)
    await _measure(suite, entries, figures, "small")


async def fill_large_log(suite: Suite, entries: Entries, effort: Effort, figures: Figures) -> None:
    rate = await fill(suite, entries, effort.large_log)
    if rate is not None:
        figures.add("evidence_fill_per_s", rate, f"AppendEntries of {_FILL_BATCH:,}, {_FILL_IN_FLIGHT} in flight")


async def measure_large_log(suite: Suite, entries: Entries, figures: Figures) -> None:
    """After `fill_large_log`, and after `measure_small_log` with which it is compared."""
    await _measure(suite, entries, figures, "large")
    for callers in _CALLERS:
        small, large = (figures.values[_name(callers, size)] for size in ("small", "large"))
        figures.add(f"evidence_flatness_{callers}", large / small, "rate in the large log to rate in the small one")


async def _measure(suite: Suite, entries: Entries, figures: Figures, size: str) -> None:
    before = await tree_size(suite)
    for callers, rate in (await append_rates(suite, entries)).items():
        figures.add(_name(callers, size), rate, f"AppendEntry, {callers} callers, {before:,} entries in the log")


def _name(callers: int, size: str) -> str:
    return f"evidence_append_per_s_{callers}_{size}_log"
