"""Group commit: Export calls that arrive while a transaction runs share the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from services.core.errors import Reason, WalletError
from services.tracestore.spans import SpanBatch


class SpanWriter:
    """`async with SpanWriter(store.insert, …) as writer: await writer.append(batch)`.

    What waits is bounded by `max_spans` and `max_bytes`; one batch is always let in, so none is refused for ever.
    """

    def __init__(
        self, insert: Callable[[Sequence[SpanBatch]], Awaitable[None]], max_spans: int, max_bytes: int
    ) -> None:
        self._insert = insert
        self._max_spans = max_spans
        self._max_bytes = max_bytes
        self._waiting: list[tuple[SpanBatch, asyncio.Future[None]]] = []
        self._spans = 0
        self._bytes = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SpanWriter:
        self._task = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def append(self, batch: SpanBatch) -> None:
        """Return when the batch is committed.

        Raises:
            WalletError: SERVICE_UNAVAILABLE when too much waits, DATABASE_UNAVAILABLE. Either way: send it again.
        """
        full = (
            self._spans + len(batch.rows) > self._max_spans or self._bytes + batch.size_bytes > self._max_bytes
        ) and self._spans > 0
        if full:
            raise WalletError(
                Reason.SERVICE_UNAVAILABLE, "too many spans are waiting to be stored", waiting=self._spans
            )
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, committed))
        self._spans += len(batch.rows)
        self._bytes += batch.size_bytes
        self._wake.set()
        await committed

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            group, self._waiting = self._waiting, []
            failure: Exception | None = None
            try:
                await self._insert([batch for batch, _ in group])
            except Exception as error:
                failure = error
            self._spans -= sum(len(batch.rows) for batch, _ in group)
            self._bytes -= sum(batch.size_bytes for batch, _ in group)
            for _, committed in group:
                # A caller that gave up has cancelled its future.
                if committed.done():
                    continue
                if failure is None:
                    committed.set_result(None)
                else:
                    committed.set_exception(failure)
