"""Which key of a token counts, by label: entered once in the service's schema, so that replicas never use two.

A token finds keys by label, and two processes that both found none would both make one. So a key is made under a lock
of the database, and its id stands in the service's table `token_keys` before it is used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sqlalchemy import text

from services.runtime.db import Database
from services.runtime.token import TokenKey


async def settled_key(database: Database, label: str, find_or_make: Callable[[], Awaitable[TokenKey]]) -> TokenKey:
    """The key that counts. The first caller finds or makes it; a crash before the commit leaves it to be found.

    Raises:
        WalletError: DATABASE_UNAVAILABLE; what `find_or_make` raises.
    """
    async with database.begin() as connection:
        await connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtext(current_user || ' ' || :label))"), {"label": label}
        )
        stored = await connection.execute(
            text("SELECT key_id, public_key FROM token_keys WHERE label = :label"), {"label": label}
        )
        if row := stored.one_or_none():
            return TokenKey(row.key_id, row.public_key)
        key = await find_or_make()
        await connection.execute(
            text("INSERT INTO token_keys (label, key_id, public_key) VALUES (:label, :key_id, :public_key)"),
            {"label": label, **key._asdict()},
        )
        return key
