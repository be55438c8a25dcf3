"""How far a run is, told now and then: a long one is not to look like one that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from services.core.errors import WalletError
from services.runtime.db import Database

_EVERY_S = 10.0


@asynccontextmanager
async def told(line: Callable[[], str], say: Callable[[str], None], database: Database | None) -> AsyncIterator[None]:
    """Say `line`, and with a database what became of the transfers, every ten seconds while the block runs."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            say(f"{line()}{'' if database is None else await _states(database)}")

    task = asyncio.create_task(tell())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _states(database: Database) -> str:
    try:
        rows = await database.rows("SELECT state, count(*) FROM gateway.transfers GROUP BY state")
    except WalletError:
        return ", the database is away"
    states = dict(rows)
    ended = ", ".join(f"{states.pop(state, 0):,} {state.lower()}" for state in ("FINALIZED", "FAILED"))
    return f", {ended}, {sum(states.values()):,} under way"
