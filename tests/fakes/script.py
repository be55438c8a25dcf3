"""What a fake is told to do wrong: refuse a call, or do the work and never answer."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict

from services.core.errors import WalletError


class Script:
    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._refusals: defaultdict[str, list[WalletError]] = defaultdict(list)
        self._held: dict[str, asyncio.Event] = {}
        self._released = asyncio.Event()

    def refuse(self, method: str, *errors: WalletError) -> None:
        """The next calls of `method` fail with these, one each."""
        self._refusals[method] += errors

    def hold(self, method: str) -> asyncio.Event:
        """Calls of `method` do their work and do not answer until `release`; the event tells that one has done so."""
        self._held[method] = asyncio.Event()
        return self._held[method]

    def release(self) -> None:
        self._held.clear()
        self._released.set()
        self._released = asyncio.Event()

    def begin(self, method: str) -> None:
        self.calls[method] += 1
        if self._refusals[method]:
            raise self._refusals[method].pop(0)

    async def end(self, method: str) -> None:
        if method in self._held:
            self._held[method].set()
            await self._released.wait()
