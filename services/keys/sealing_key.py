"""The key of the token that seals new seeds: which one counts stands in the database, for all replicas."""

from __future__ import annotations

from services.keys.ceremonies import Ceremonies
from services.keys.settings import SEALING_KEY_LABEL
from services.runtime.db import Database
from services.runtime.token_keys import settled_key


class SealingKey:
    """Every method may raise WalletError: DATABASE_UNAVAILABLE, and the errors of `Ceremonies`."""

    def __init__(self, database: Database, ceremonies: Ceremonies) -> None:
        self._database = database
        self._ceremonies = ceremonies
        self._id: bytes | None = None

    async def id(self) -> bytes:
        """16 bytes. The first replica that asks makes the key."""
        if self._id is None:
            self._id = (await settled_key(self._database, SEALING_KEY_LABEL, self._ceremonies.sealing_key)).key_id
        return self._id

    async def check(self) -> None:
        """Return if a seed could be sealed now. Raises KEY_NOT_FOUND where the token is another one."""
        await self._ceremonies.check(await self.id())
