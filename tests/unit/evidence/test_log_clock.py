"""Two clocks have to agree on what an entry is stamped with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from services.core.errors import Reason, WalletError
from services.evidence.log_clock import LogClock

HOUR = timedelta(hours=1)
MOMENT = timedelta(seconds=1)


class Shared:
    """The database's clock, so far ahead of ours; a first reading may be an older one."""

    def __init__(self, ahead: timedelta, stale: timedelta | None = None) -> None:
        self._ahead = ahead
        self._stale = ahead if stale is None else stale

    async def now(self) -> datetime:
        return datetime.now(UTC) + self._stale

    async def read_anew(self) -> datetime:
        return datetime.now(UTC) + self._ahead


async def stamped(shared: Shared, last: datetime | None = None) -> datetime:
    return await LogClock(cast(Any, shared)).now(last)


@pytest.mark.parametrize(("ahead", "said"), [(HOUR, "3600 s behind the database's"), (-HOUR, "3600 s ahead of")])
async def test_nothing_is_stamped_while_the_two_are_apart(ahead: timedelta, said: str) -> None:
    with pytest.raises(WalletError, match=said) as refused:
        await stamped(Shared(ahead))
    assert refused.value.reason is Reason.EVIDENCE_UNAVAILABLE


async def test_the_database_s_clock_counts_within_the_tolerance() -> None:
    assert abs(await stamped(Shared(3 * MOMENT)) - datetime.now(UTC) - 3 * MOMENT) < MOMENT


async def test_a_reading_that_has_grown_old_is_made_anew_before_it_counts() -> None:
    """As after the machine has slept."""
    assert abs(await stamped(Shared(timedelta(), stale=-HOUR)) - datetime.now(UTC)) < MOMENT


async def test_the_log_s_time_never_runs_backwards() -> None:
    last = datetime.now(UTC) + 2 * MOMENT
    assert await stamped(Shared(timedelta()), last) == last


async def test_nothing_follows_an_entry_of_the_future() -> None:
    with pytest.raises(WalletError, match="the newest entry of the log is 3600 s ahead of the clock"):
        await stamped(Shared(timedelta()), datetime.now(UTC) + HOUR)
