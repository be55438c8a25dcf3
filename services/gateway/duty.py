"""Work that one worker of all gateways does: again and again, under a lease, by whoever holds it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from services.core.errors import WalletError
from services.gateway.leases import Leases

_log = logging.getLogger(__name__)


async def perform(leases: Leases, owner: str, duty: str, period_s: float, work: Callable[[], Awaitable[None]]) -> None:
    """Until cancelled. What `work` does must be harmless when two do it: a lease that lapsed is noticed afterwards."""
    while True:
        try:
            if await leases.take(owner, duty) is not None:
                await work()
        except WalletError as error:
            _log.warning("%s: interrupted: %s", duty, error)
        except Exception:
            _log.exception("%s: interrupted", duty)
        await asyncio.sleep(period_s)
