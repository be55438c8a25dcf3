"""Group commit: Export calls that arrive while a transaction runs share the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence, Sized
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

from services.core.errors import Reason, WalletError


class Batch(Protocol):
    """What one Export call brought."""

    @property
    def rows(self) -> Sized: ...

    @property
    def size_bytes(self) -> int: ...


BatchType = TypeVar("BatchType", bound=Batch)


class BatchWriter(Generic[BatchType]):
    """`async with BatchWriter(store.insert, …) as writer: await writer.append(batch)`.

    What waits is bounded by `max_rows` and `max_bytes`; one batch is always let in, so none is refused for ever.
    """

    def __init__(self, insert: Callable[[Sequence[BatchType]], Awaitable[None]], max_rows: int, max_bytes: int) -> None:
        self._insert = insert
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._waiting: list[tuple[BatchType, asyncio.Future[None]]] = []
        self._rows = 0
        self._bytes = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> BatchWriter[BatchType]:
        self._task = asyncio.create_task(self._write())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @property
    def waiting_rows(self) -> int:
        return self._rows

    async def append(self, batch: BatchType) -> None:
        """Return when the batch is committed.

        Raises:
            WalletError: SERVICE_UNAVAILABLE when too much waits, DATABASE_UNAVAILABLE. Either way: send it again.
        """
        full = (
            self._rows + len(batch.rows) > self._max_rows or self._bytes + batch.size_bytes > self._max_bytes
        ) and self._rows > 0
        if full:
            raise WalletError(Reason.SERVICE_UNAVAILABLE, "too much is waiting to be stored", waiting=self._rows)
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, committed))
        self._rows += len(batch.rows)
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
            self._rows -= sum(len(batch.rows) for batch, _ in group)
            self._bytes -= sum(batch.size_bytes for batch, _ in group)
            for _, committed in group:
                # A caller that gave up has cancelled its future.
                if committed.done():
                    continue
                if failure is None:
                    committed.set_result(None)
                else:
                    committed.set_exception(failure)
