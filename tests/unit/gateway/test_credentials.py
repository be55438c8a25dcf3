from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.core.errors import Reason, WalletError
from services.gateway import credentials
from services.gateway.credentials import Authenticator, Credential, Role, new_token


class Rows:
    def __init__(self) -> None:
        self.rows: dict[str, Credential] = {}
        self.reads = 0

    async def credential(self, credential_id: str) -> Credential | None:
        self.reads += 1
        return self.rows.get(credential_id)


def store_new(rows: Rows) -> str:
    credential_id, token, secret_sha256 = new_token()
    rows.rows[credential_id] = Credential(credential_id, "alice", Role.OPERATOR, secret_sha256, None, None)
    return token


async def reason_of(authenticator: Authenticator, token: str) -> Reason:
    with pytest.raises(WalletError) as refused:
        await authenticator.authenticate(token)
    return refused.value.reason


def test_only_the_hash_of_the_secret_is_kept() -> None:
    _, token, stored = new_token()
    assert stored == hashlib.sha256(token.split("_", 2)[2].encode()).digest()


async def test_a_revocation_is_believed_within_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(credentials.time, "monotonic", lambda: now)
    rows = Rows()
    token = store_new(rows)
    authenticator = Authenticator(rows)
    await authenticator.authenticate(token)
    (credential_id,) = rows.rows
    rows.rows[credential_id] = replace(rows.rows[credential_id], revoked_at=datetime.now(UTC))
    now = 104.9
    await authenticator.authenticate(token)
    assert rows.reads == 1
    now = 105.1
    assert await reason_of(authenticator, token) is Reason.UNAUTHENTICATED


async def test_expiry_counts_also_while_the_credential_is_cached() -> None:
    rows = Rows()
    token = store_new(rows)
    authenticator = Authenticator(rows)
    (credential_id,) = rows.rows
    rows.rows[credential_id] = replace(rows.rows[credential_id], expires_at=datetime.now(UTC) + timedelta(hours=1))
    found = await authenticator.authenticate(token)
    authenticator._cache[credential_id] = (
        authenticator._cache[credential_id][0],
        replace(found, expires_at=datetime.now(UTC) - timedelta(seconds=1)),
    )
    assert await reason_of(authenticator, token) is Reason.TOKEN_EXPIRED


@pytest.mark.parametrize("token", ["", "gl_", "gl_0123456789abcdef_short", "x" * 10_000])
async def test_what_is_no_token_is_refused_without_a_query(token: str) -> None:
    rows = Rows()
    assert await reason_of(Authenticator(rows), token) is Reason.UNAUTHENTICATED
    assert rows.reads == 0


async def test_a_wrong_secret_is_refused() -> None:
    rows = Rows()
    token = store_new(rows)
    other = new_token()[1]
    mixed = "_".join([*token.split("_", 2)[:2], other.split("_", 2)[2]])
    assert await reason_of(Authenticator(rows), mixed) is Reason.UNAUTHENTICATED
