"""The clock of a service's database: one for all processes, whatever each machine's own says."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta

from services.core.errors import WalletError
from services.runtime.db import Database

_log = logging.getLogger(__name__)

# So long a reading is good for: in between, the monotonic clock counts on from it.
_READING_S = 10.0
# A reading that took longer says too little, unless there is no other.
_LONGEST_READING_S = 1.0
_TOLD = timedelta(seconds=5)


class DatabaseClock:
    """Times that go into the log. A machine's clock that jumps changes none of them.

    Who takes over from another process goes on by the same clock, so that a link's times stay in order.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reading = asyncio.Lock()
        # The database's time when the monotonic clock was 0, and the latter's time at that reading.
        self._origin: datetime | None = None
        self._read_at = 0.0
        self._is_told = False

    async def now(self) -> datetime:
        """Raises WalletError DATABASE_UNAVAILABLE when it was never read."""
        if self._is_old():
            async with self._reading:
                if self._is_old():
                    await self._read()
        assert self._origin is not None
        return self._origin + timedelta(seconds=time.monotonic())

    async def read_anew(self) -> datetime:
        """`now`, by a reading of its own. Raises WalletError DATABASE_UNAVAILABLE when it was never read."""
        async with self._reading:
            await self._read()
        return await self.now()

    def _is_old(self) -> bool:
        return self._origin is None or time.monotonic() - self._read_at > _READING_S

    async def _read(self) -> None:
        asked = time.monotonic()
        try:
            read: datetime = await self._database.value("SELECT clock_timestamp()")
        except WalletError:
            if self._origin is None:
                raise
            # Asked again at once by every caller, a database that is away would slow all of them down.
            self._read_at = time.monotonic()
            return
        answered = time.monotonic()
        self._read_at = answered
        if self._origin is None or answered - asked <= _LONGEST_READING_S:
            self._origin = read - timedelta(seconds=(asked + answered) / 2)
            self._tell(datetime.now(UTC) - self._origin - timedelta(seconds=time.monotonic()))

    def _tell(self, ahead: timedelta) -> None:
        """Once, not at every reading."""
        is_apart = abs(ahead) > _TOLD
        if is_apart and not self._is_told:
            _log.warning("this machine's clock is not the database's", extra={"ahead_s": round(ahead.total_seconds())})
        self._is_told = is_apart
