"""The clock that entries are stamped with: the database's, as long as this machine's own agrees."""

from __future__ import annotations

from datetime import UTC, datetime

from services.core.errors import Reason, WalletError
from services.core.grammar import CLOCK_TOLERANCE
from services.runtime.database_clock import DatabaseClock


class LogClock:
    """A time in the log is there for good, and none after it may be earlier: one false hour would stop every link.

    So two clocks have to agree on it, within what the log bears of its writers.
    """

    def __init__(self, shared: DatabaseClock) -> None:
        self._shared = shared

    async def now(self, last: datetime | None) -> datetime:
        """The time of the next entry; `last` is that of the newest one.

        Raises:
            WalletError: EVIDENCE_UNAVAILABLE, saying which clock is off; DATABASE_UNAVAILABLE.
        """
        now = await self._shared.now()
        if abs(datetime.now(UTC) - now) > CLOCK_TOLERANCE:
            # Read again before it counts: a machine that slept has a clock that did not.
            now = await self._shared.read_anew()
        own = datetime.now(UTC)
        if abs(own - now) > CLOCK_TOLERANCE:
            raise _apart(own, now, "the clock of the machine that appends to the log", "the database's")
        if last is not None and last - now > CLOCK_TOLERANCE:
            raise _apart(last, now, "the newest entry of the log", "the clock")
        # The log's clock never runs backwards, whatever the others do.
        return now if last is None else max(now, last)


def _apart(one: datetime, other: datetime, name: str, other_name: str) -> WalletError:
    seconds = round((one - other).total_seconds())
    where = "ahead of" if seconds > 0 else "behind"
    return WalletError(Reason.EVIDENCE_UNAVAILABLE, f"{name} is {abs(seconds)} s {where} {other_name}")
