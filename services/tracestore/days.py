"""The partitions by day of receipt, made before their day comes (docs/adr/0010-days-of-receipt.md)."""

from __future__ import annotations

import asyncio
import logging

from services.core.errors import WalletError
from services.runtime.db import Database

_log = logging.getLogger(__name__)
# Of today, by the database's clock and UTC.
_DAYS_AHEAD = 3
_EVERY_S, _AGAIN_S = 3_600.0, 10.0


class Days:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def make(self) -> None:
        """Today's partitions and those of the next days, where they are missing. Any number of replicas may.

        Raises:
            WalletError: DATABASE_UNAVAILABLE.
        """
        await self._database.value("SELECT tracestore.make_days($1)", _DAYS_AHEAD)

    async def keep(self) -> None:
        """Make them again and again, for ever."""
        while True:
            try:
                await self.make()
            except WalletError as error:
                _log.warning("the partitions of the next days are not made yet: %s", error)
                await asyncio.sleep(_AGAIN_S)
            else:
                await asyncio.sleep(_EVERY_S)
