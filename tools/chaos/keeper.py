"""Starts again what has died, a moment later, as Kubernetes would."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable

from tools.stack.processes import StackError
from tools.stack.stack import Stack

_LOOK_S = 0.1
_LONGEST_PAUSE_S = 3.0
_LAUNCHES = 5


class Keeper:
    def __init__(self, stack: Stack, names: Iterable[str], seed: int, died: Callable[[str, float], None]) -> None:
        """`died` is called with the name of a process that was found dead, and the time (Unix, seconds)."""
        self._stack = stack
        self._names = tuple(names)
        self._rng = random.Random(f"keeper {seed}")  # noqa: S311 - to be repeated, not to be secret
        self._died = died
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._looked = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled; raises StackError when a process does not come back."""
        try:
            while True:
                for name in self._names:
                    if name in self._starting or self._stack.is_running(name):
                        continue
                    self._died(name, time.time())
                    pause_s = self._rng.uniform(0.0, _LONGEST_PAUSE_S)
                    self._starting[name] = asyncio.create_task(self._start(name, pause_s))
                for name, task in list(self._starting.items()):
                    if task.done():
                        del self._starting[name]
                        task.result()
                self._looked.set()
                await asyncio.sleep(_LOOK_S)
        finally:
            for task in self._starting.values():
                task.cancel()
            await asyncio.gather(*self._starting.values(), return_exceptions=True)

    async def whole(self) -> None:
        """Return once everything runs. Nothing may be killed any more."""
        while True:
            self._looked.clear()
            await self._looked.wait()
            if not self._starting:
                return

    async def _start(self, name: str, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        for attempt in range(1, _LAUNCHES + 1):
            try:
                await self._stack.launch(name)
                return
            except StackError:
                # It may have been killed again, or the database is away just now.
                if attempt == _LAUNCHES:
                    raise
                await asyncio.sleep(_LONGEST_PAUSE_S)
