"""Bearer tokens `gl_<id>_<secret>` and their roles.

The secret is 256 random bits, so one SHA-256 is the right hash: slow hashes protect secrets that can be guessed, and
nobody guesses 256 bits; a fast one keeps the check off every request's bill.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol

from services.core.client_keys import ClientKey
from services.core.errors import Reason, WalletError

_TOKEN = re.compile(r"gl_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_CACHE_S = 5.0
_CACHE_SIZE = 1_024


class Role(StrEnum):
    OPERATOR = "operator"
    APPROVER = "approver"
    AUDITOR = "auditor"


@dataclass(frozen=True)
class Credential:
    credential_id: str
    name: str
    role: Role
    secret_sha256: bytes
    expires_at: datetime | None
    revoked_at: datetime | None
    # Revoked ones too: who has ever had a key signs, and with every key revoked changes nothing.
    client_keys: tuple[ClientKey, ...] = ()


class CredentialStore(Protocol):
    async def credential(self, credential_id: str) -> Credential | None: ...


def new_token() -> tuple[str, str, bytes]:
    """(credential id, token text, SHA-256 of its secret)."""
    credential_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    return credential_id, f"gl_{credential_id}_{secret}", _secret_hash(secret)


class Authenticator:
    """Tokens to credentials. A credential once read is believed for five seconds: so long a revocation takes."""

    def __init__(self, store: CredentialStore) -> None:
        self._store = store
        self._cache: dict[str, tuple[float, Credential]] = {}

    async def authenticate(self, token: str) -> Credential:
        """Raises WalletError: UNAUTHENTICATED, TOKEN_EXPIRED."""
        match = _TOKEN.fullmatch(token)
        credential = await self._read(match[1]) if match else None
        if match is None or credential is None or credential.revoked_at is not None:
            raise _unauthenticated()
        if not hmac.compare_digest(_secret_hash(match[2]), credential.secret_sha256):
            raise _unauthenticated()
        if credential.expires_at is not None and credential.expires_at <= datetime.now(UTC):
            raise WalletError(Reason.TOKEN_EXPIRED, Reason.TOKEN_EXPIRED.meaning, field="Authorization")
        return credential

    async def _read(self, credential_id: str) -> Credential | None:
        now = time.monotonic()
        read_at, credential = self._cache.get(credential_id, (0.0, None))
        if credential is not None and now - read_at < _CACHE_S:
            return credential
        credential = await self._store.credential(credential_id)
        # Only what exists is kept: ids that are tried out do not push real ones from the cache.
        if credential is not None:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            self._cache[credential_id] = (now, credential)
        return credential


def require_role(credential: Credential, allowed: frozenset[Role]) -> None:
    """Raises WalletError: ROLE_REQUIRED."""
    if credential.role not in allowed:
        rule = "role " + " or ".join(sorted(allowed))
        raise WalletError(Reason.ROLE_REQUIRED, Reason.ROLE_REQUIRED.meaning, field="Authorization", rule=rule)


def _secret_hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("ascii")).digest()


def _unauthenticated() -> WalletError:
    rule = "Bearer and a valid token"
    return WalletError(Reason.UNAUTHENTICATED, Reason.UNAUTHENTICATED.meaning, field="Authorization", rule=rule)
