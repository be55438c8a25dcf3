"""How an account is named where its address must not stand: in spans, log lines and Redis keys."""

from __future__ import annotations

import hmac
from functools import lru_cache
from hashlib import sha256

from services.core.addresses import Address
from services.core.amounts import format_account

_CACHED_ACCOUNTS = 4_096


class AccountIds:
    """Keyed HMAC-SHA-256 of the CAIP-10 account, 16 hex digits: a bare hash of a public address is guessable."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.of = lru_cache(_CACHED_ACCOUNTS)(self._of)

    def _of(self, chain_id: int, address: Address) -> str:
        return hmac.digest(self._key, format_account(chain_id, address).encode(), sha256).hex()[:16]
