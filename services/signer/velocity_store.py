"""Registrations that count: window and register in one transaction, under the lock of their account and asset."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

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


# In one order for all callers, so that they queue instead of deadlocking. The time is the database's, and never earlier
# than one that was counted by: a clock that is set back opens no window.
_LOCK = """
INSERT INTO signer.velocity AS v (chain_id, address, asset, latest_at)
SELECT u.chain_id, u.address, u.asset, clock_timestamp()
FROM unnest($1::bigint[], $2::bytea[], $3::text[]) AS u (chain_id, address, asset)
ORDER BY u.chain_id, u.address, u.asset
ON CONFLICT (chain_id, address, asset) DO UPDATE SET latest_at = greatest(v.latest_at, excluded.latest_at)
RETURNING v.chain_id, v.address, v.asset, v.latest_at
"""

# A window ends at the earlier of the two clocks: one that is ahead opens no window either.
_SPENT = """
SELECT u.chain_id, u.address, u.asset, u.window_s, s.amount
FROM unnest($1::bigint[], $2::bytea[], $3::text[], $4::integer[])
    AS u (chain_id, address, asset, window_s)
LEFT JOIN signer.velocity v USING (chain_id, address, asset)
CROSS JOIN LATERAL (
    SELECT coalesce(sum(r.amount), 0) AS amount FROM signer.register r
    WHERE r.chain_id = u.chain_id AND r.address = u.address AND r.asset = u.asset
        AND r.counted_at > least(greatest(v.latest_at, statement_timestamp()), $5) - u.window_s * interval '1 second'
        AND r.counted_at IS NOT NULL AND r.voided_at IS NULL
) s
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
        return admit(new, await in_transaction(self._database, lambda connection: _spent(connection, new, now)))


async def _enter(connection: AsyncConnection, counted: Sequence[Counted], now: datetime) -> Outcome:
    registrations = {one.candidate.link_id: one.registration for one in counted}
    waiting = [one.candidate for one in counted]
    purses = sorted({one.purse for one in waiting})
    await rows(connection, _LOCK, *_columns(purses))
    # A statement of its own: it sees what was committed before the lock was ours.
    spent = await _spent(connection, waiting, now)
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


async def _spent(connection: AsyncConnection, candidates: Sequence[Candidate], now: datetime) -> Spent:
    wanted = sorted({(one.purse, window.window_s) for one in candidates for window in one.counted.windows})
    found = await rows(
        connection, _SPENT, *_columns([purse for purse, _ in wanted]), [window_s for _, window_s in wanted], now
    )
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


def _columns(purses: Sequence[Purse]) -> tuple[list[int], list[bytes], list[str]]:
    return (
        [purse.chain_id for purse in purses],
        [purse.address for purse in purses],
        [purse.asset_name for purse in purses],
    )
