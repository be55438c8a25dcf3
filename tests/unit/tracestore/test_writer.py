"""Group commit: who shares a transaction, what waits, and what a failure reaches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.core.errors import Reason, WalletError
from services.tracestore.spans import SpanBatch, SpanRow
from services.tracestore.writer import BatchWriter


class Transactions:
    """Stands where the store's insert stands; a transaction commits when the test lets it."""

    def __init__(self) -> None:
        self.groups: list[Sequence[SpanBatch]] = []
        self.started = asyncio.Event()
        self.commit = asyncio.Event()
        self.failure: Exception | None = None

    async def insert(self, batches: Sequence[SpanBatch]) -> None:
        self.groups.append(batches)
        self.started.set()
        await self.commit.wait()
        if self.failure is not None:
            raise self.failure


def batch_of(count: int, size_bytes: int = 100) -> SpanBatch:
    row = SpanRow(b"t" * 16, 1, b"s" * 8, b"h" * 32, b"", 0, "signer", "signer.sign", 0, 0, "{1}", b"c" * 32, b"span")
    return SpanBatch(rows=[row] * count, size_bytes=size_bytes)


async def test_calls_during_a_transaction_share_the_next_one_and_wait_for_its_commit() -> None:
    transactions = Transactions()
    async with BatchWriter(transactions.insert, 1_000, 1_000_000) as writer:
        first = asyncio.ensure_future(writer.append(batch_of(1)))
        await transactions.started.wait()
        rest = [asyncio.ensure_future(writer.append(batch_of(1))) for _ in range(20)]
        await asyncio.sleep(0)
        assert not first.done()
        transactions.commit.set()
        await asyncio.gather(first, *rest)
    assert [len(group) for group in transactions.groups] == [1, 20]


@pytest.mark.parametrize(("max_spans", "max_bytes"), [(10, 1_000_000), (1_000, 250)])
async def test_too_much_waiting_is_unavailable_until_it_is_stored(max_spans: int, max_bytes: int) -> None:
    transactions = Transactions()
    async with BatchWriter(transactions.insert, max_spans, max_bytes) as writer:
        waiting = [asyncio.ensure_future(writer.append(batch_of(5))) for _ in range(2)]
        await transactions.started.wait()
        with pytest.raises(WalletError) as raised:
            await writer.append(batch_of(5))
        assert raised.value.reason is Reason.SERVICE_UNAVAILABLE
        transactions.commit.set()
        await asyncio.gather(*waiting)
        await writer.append(batch_of(5))


async def test_one_batch_above_the_limit_is_let_in_when_nothing_waits() -> None:
    transactions = Transactions()
    transactions.commit.set()
    async with BatchWriter(transactions.insert, 10, 10) as writer:
        await writer.append(batch_of(5_000, size_bytes=5_000))


async def test_a_failed_transaction_fails_its_calls_and_not_the_next() -> None:
    transactions = Transactions()
    transactions.failure = WalletError(Reason.DATABASE_UNAVAILABLE, "gone")
    transactions.commit.set()
    async with BatchWriter(transactions.insert, 10, 1_000) as writer:
        results = await asyncio.gather(*(writer.append(batch_of(5)) for _ in range(2)), return_exceptions=True)
        assert [result for result in results if result is transactions.failure] == results
        transactions.failure = None
        await writer.append(batch_of(10))


async def test_a_caller_that_gives_up_harms_nobody() -> None:
    transactions = Transactions()
    async with BatchWriter(transactions.insert, 10, 1_000) as writer:
        given_up = asyncio.ensure_future(writer.append(batch_of(5)))
        other = asyncio.ensure_future(writer.append(batch_of(5)))
        await transactions.started.wait()
        given_up.cancel()
        transactions.commit.set()
        await other
        await writer.append(batch_of(10))
