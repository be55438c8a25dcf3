"""The key that signs checkpoints: the database says which one counts, and a token that holds it signs."""

from __future__ import annotations

import asyncio
import logging

from services.core.errors import Reason, WalletError
from services.core.notes import NoteKey
from services.runtime.db import Database
from services.runtime.token import TokenKey, TokenSession
from services.runtime.token_keys import settled_key

_log = logging.getLogger(__name__)

LABEL = "checkpoint"
_PAUSE_S = 0.25


class CheckpointKey:
    def __init__(self, token: TokenSession, origin: str, key: TokenKey) -> None:
        self._token = token
        self._key_id = key.key_id
        self._held = False
        self.note_key = NoteKey(origin, key.public_key)

    async def sign(self, text: bytes) -> bytes:
        """Raises WalletError KEY_NOT_FOUND where the token is not one of this log's, and the token's errors."""
        return await asyncio.to_thread(self._token.sign_ed25519, LABEL, self._key_id, text)

    async def held(self) -> bool:
        """Whether the token holds the key; a token that did is not asked again. Raises the token's errors."""
        self._held = self._held or await asyncio.to_thread(self._token.holds_pair, LABEL, self._key_id)
        return self._held


async def settle_checkpoint_key(database: Database, token: TokenSession, origin: str) -> CheckpointKey:
    """Once the database tells which one it is; made by the first replica that asks.

    Raises:
        WalletError: the token's errors.
    """
    await asyncio.to_thread(token.open)
    waited = False
    while True:
        try:
            key = await settled_key(database, LABEL, lambda: asyncio.to_thread(token.note_key, LABEL))
            return CheckpointKey(token, origin, key)
        except WalletError as error:
            if error.reason is not Reason.DATABASE_UNAVAILABLE:
                raise
        if not waited:
            _log.warning("the evidence log cannot be read: waiting for the database")
            waited = True
        await asyncio.sleep(_PAUSE_S)
