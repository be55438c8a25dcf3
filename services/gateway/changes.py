"""Who waits in this process for a transfer to change. A hint only: another process may change it, so waiters also look
for themselves every second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

_LOOK_S = 1.0


class Changes:
    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.stopping = False

    def announce(self, transfer_ids: Iterable[str]) -> None:
        if self._waiting:
            for transfer_id in transfer_ids:
                for event in self._waiting.get(transfer_id, ()):
                    event.set()

    def stop(self) -> None:
        """Let every waiter go: the process ends."""
        self.stopping = True
        self.announce(list(self._waiting))

    def watch(self, transfer_id: str) -> Watch:
        return Watch(self._waiting, transfer_id)


class Watch:
    """`with changes.watch(id) as watch: … await watch.wait()`. A change between two waits is not missed."""

    def __init__(self, waiting: dict[str, set[asyncio.Event]], transfer_id: str) -> None:
        self._waiting = waiting
        self._transfer_id = transfer_id
        self._event = asyncio.Event()

    def __enter__(self) -> Watch:
        self._waiting.setdefault(self._transfer_id, set()).add(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        events = self._waiting[self._transfer_id]
        events.discard(self._event)
        if not events:
            del self._waiting[self._transfer_id]

    async def wait(self) -> None:
        """Until a change is announced, or a second has passed."""
        try:
            async with asyncio.timeout(_LOOK_S):
                await self._event.wait()
        except TimeoutError:
            return
        self._event.clear()
