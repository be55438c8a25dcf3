"""Registrations that count: window and register in one transaction, under the lock of their account and asset."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.db import Database
from services.signer.restarting import in_transaction, rows
from services.signer.store import Registration
from services.signer.velocity import Candidate, Purse, Spent, admit, with_spent


class Counted(NamedTuple):
    """A link's first transaction, and what it counts."""

    registration: Registration
    candidate: Candidate


class Outcome(NamedTuple):
    entered: set[str]
    refused: dict[str, str]  # the rule, by link id


# Locks the purses, for as long as the transaction lasts, and answers what their windows hold: migration 0005.
_SETTLE = """
SELECT chain_id, address, asset, window_s, spent
FROM signer.settle_velocity($1::bigint[], $2::bytea[], $3::text[], $4::integer[], $5)
"""

# The same without a lock, and nothing is written.
_FORESEE = """
SELECT u.chain_id, u.address, u.asset, u.window_s, signer.velocity_since(
    u.chain_id, u.address, u.asset, u.window_s,
    least(greatest(v.latest_at, statement_timestamp()), $5) - u.window_s * interval '1 second'
)
FROM unnest($1::bigint[], $2::bytea[], $3::text[], $4::integer[])
    AS u (chain_id, address, asset, window_s)
LEFT JOIN LATERAL (
    SELECT latest_at FROM signer.velocity
    WHERE chain_id = u.chain_id AND address = u.address AND asset = u.asset OFFSET 0
) v ON true
"""

# As store's _ENTER, with what it counts.
_ENTER = """
INSERT INTO signer.register
    (link_id, attempt, chain_id, address, nonce, unsigned_tx, decision, policy_version, intent_body,
     asset, amount, counted_at)
SELECT u.link_id, 1, u.chain_id, u.address, u.nonce, u.unsigned_tx, 'allow', u.policy_version, u.intent_body,
       u.asset, u.amount, v.latest_at
FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::bigint[], $5::bytea[], $6::integer[], $7::bytea[],
            $8::text[], $9::numeric[])
    AS u (link_id, chain_id, address, nonce, unsigned_tx, policy_version, intent_body, asset, amount)
JOIN signer.velocity v USING (chain_id, address, asset)
WHERE NOT EXISTS (SELECT FROM signer.denials d WHERE d.link_id = u.link_id)
    AND u.policy_version = (SELECT max(version) FROM signer.policy_versions)
ON CONFLICT DO NOTHING
RETURNING link_id
"""


_REGISTERED = "SELECT link_id FROM signer.register WHERE link_id = ANY ($1::text[]) AND attempt = 1"


class VelocityStore:
    """Every method raises WalletError DATABASE_UNAVAILABLE; whether a write that failed so took effect is unknown."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def enter(self, counted: Sequence[Counted], now: datetime) -> Outcome:
        """Enter new links that fit, in this order; those in neither set are there, denied, decided by a policy that is
        no more in force, or their nonce is another's. `now` is this process's clock."""
        return await in_transaction(self._database, lambda connection: _enter(connection, counted, now))

    async def foresee(self, candidates: Sequence[Candidate], now: datetime) -> dict[str, str]:
        """Link id → the rule that would refuse it now. Holds no lock and counts nothing; links that are registered have
        been decided."""
        decided = await self._database.rows(_REGISTERED, [one.link_id for one in candidates])
        new = [one for one in candidates if one.link_id not in {row["link_id"] for row in decided}]
        return admit(new, _read_spent(await self._database.rows(_FORESEE, *_windows(new), now)))


async def _enter(connection: AsyncConnection, counted: Sequence[Counted], now: datetime) -> Outcome:
    registrations = {one.candidate.link_id: one.registration for one in counted}
    waiting = [one.candidate for one in counted]
    spent = _read_spent(await rows(connection, _SETTLE, *_windows(waiting), now))
    entered: set[str] = set()
    refused: dict[str, str] = {}
    while waiting:
        refused = admit(waiting, spent)
        admitted = [one for one in waiting if one.link_id not in refused]
        entered_now = await _insert(connection, [(registrations[one.link_id], one) for one in admitted])
        entered |= entered_now
        if len(entered_now) == len(admitted) or not refused:
            break
        # Retries and conflicts took no room: whoever was refused for their sake is asked again.
        spent = with_spent(spent, [one for one in admitted if one.link_id in entered_now])
        waiting = [one for one in waiting if one.link_id in refused]
    return Outcome(entered, refused)


def _windows(candidates: Sequence[Candidate]) -> tuple[list[int], list[bytes], list[str], list[int]]:
    """The columns of all windows that count any of these."""
    wanted = sorted({(one.purse, window.window_s) for one in candidates for window in one.counted.windows})
    return (
        [purse.chain_id for purse, _ in wanted],
        [purse.address for purse, _ in wanted],
        [purse.asset_name for purse, _ in wanted],
        [window_s for _, window_s in wanted],
    )


def _read_spent(found: Sequence[Any]) -> Spent:
    return {
        (Purse(chain_id, address, asset), window_s): int(amount) for chain_id, address, asset, window_s, amount in found
    }


async def _insert(connection: AsyncConnection, admitted: Sequence[tuple[Registration, Candidate]]) -> set[str]:
    if not admitted:
        return set()
    ordered = sorted(admitted, key=lambda one: one[0].key)
    entered = await rows(
        connection,
        _ENTER,
        [registration.link_id for registration, _ in ordered],
        [registration.key.chain_id for registration, _ in ordered],
        [registration.key.address for registration, _ in ordered],
        [registration.key.nonce for registration, _ in ordered],
        [registration.unsigned_tx for registration, _ in ordered],
        [registration.policy_version for registration, _ in ordered],
        [registration.intent_body for registration, _ in ordered],
        [candidate.purse.asset_name for _, candidate in ordered],
        [Decimal(candidate.counted.amount) for _, candidate in ordered],
    )
    return {link_id for (link_id,) in entered}
