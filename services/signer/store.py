"""What signer keeps in PostgreSQL: the register, denials, failed signatures. Many rows a statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, cast

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from services.core.addresses import Address
from services.core.digests import Digest
from services.core.errors import Reason, WalletError
from services.runtime.db import Database
from services.signer.restarting import in_statement, in_transaction, rows


class NonceKey(NamedTuple):
    chain_id: int
    address: Address
    nonce: int


class Registration(NamedTuple):
    """A transaction of a link, as it enters the register."""

    link_id: str
    key: NonceKey
    unsigned_tx: bytes
    policy_version: int
    intent_body: bytes
    attempt: int = 1  # counts the link's transactions: the first and its fee bumps
    supersedes: str | None = None  # of a superseding link


@dataclass(frozen=True, slots=True)
class Registered:
    """A row of the register: its intent's body, or where that is in the log. A tombstone may have neither."""

    link_id: str
    attempt: int
    key: NonceKey | None
    unsigned_tx: bytes | None
    intent_body: bytes | None
    intent_index: int | None
    signature_body: bytes | None
    voided: bool
    supersedes: str | None
    superseded_by: str | None


class Denial(NamedTuple):
    """A refusal: its intent's body, or where that is in the log."""

    link_id: str
    digest: Digest
    policy_version: int
    rule: str
    intent_body: bytes | None
    intent_index: int | None = None


class SignedRow(NamedTuple):
    link_id: str
    attempt: int
    intent_index: int
    signature_body: bytes


class FailedRow(NamedTuple):
    link_id: str
    attempt: int
    number: int  # counts from 1 within the attempt
    body: bytes


# A denied link stays denied: its log is closed. What another policy than the one in force decided is decided again.
_ENTER = """
INSERT INTO signer.register
    (link_id, attempt, chain_id, address, nonce, unsigned_tx, decision, policy_version, intent_body)
SELECT u.link_id, 1, u.chain_id, u.address, u.nonce, u.unsigned_tx, 'allow', u.policy_version, u.intent_body
FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::bigint[], $5::bytea[], $6::integer[], $7::bytea[])
    AS u (link_id, chain_id, address, nonce, unsigned_tx, policy_version, intent_body)
WHERE NOT EXISTS (SELECT FROM signer.denials d WHERE d.link_id = u.link_id)
    AND u.policy_version = (SELECT max(version) FROM signer.policy_versions)
ON CONFLICT DO NOTHING
RETURNING link_id
"""

# A row at a time by its key (OFFSET keeps it so): the plan of another join would be made for an empty table, and kept.
_FIND = """
SELECT r.* FROM unnest($1::text[]) AS u (link_id)
CROSS JOIN LATERAL (
    SELECT link_id, attempt, chain_id, address, nonce, unsigned_tx, intent_body, intent_index, signature_body,
           voided_at IS NOT NULL AS voided, supersedes, superseded_by
    FROM signer.register WHERE link_id = u.link_id OFFSET 0
) r
UNION ALL
SELECT r.* FROM unnest($2::bigint[], $3::bytea[], $4::bigint[])
    AS u (chain_id, address, nonce)
CROSS JOIN LATERAL (
    SELECT link_id, attempt, chain_id, address, nonce, NULL::bytea, NULL::bytea, NULL::bigint, NULL::bytea, false,
           NULL::text, NULL::text
    FROM signer.register
    WHERE chain_id = u.chain_id AND address = u.address AND nonce = u.nonce AND attempt = 1
        AND voided_at IS NULL AND coalesce(supersedes, '') = ''
    OFFSET 0
) r
WHERE r.link_id <> ALL ($1::text[])
"""

_DENY = """
INSERT INTO signer.denials (link_id, digest, policy_version, rule, intent_body)
SELECT u.* FROM unnest($1::text[], $2::bytea[], $3::integer[], $4::text[], $5::bytea[])
    AS u (link_id, digest, policy_version, rule, intent_body)
WHERE NOT EXISTS (
    SELECT FROM signer.register r WHERE r.link_id = u.link_id AND r.attempt = 1 AND r.voided_at IS NULL
)
ON CONFLICT DO NOTHING
"""

_FIND_DENIALS = """
SELECT link_id, digest, policy_version, rule, intent_body, intent_index FROM signer.denials
WHERE link_id = ANY ($1::text[])
"""

_DENIALS_ENTERED = """
UPDATE signer.denials AS d SET intent_body = NULL, intent_index = u.intent_index
FROM unnest($1::text[], $2::bigint[]) AS u (link_id, intent_index)
WHERE d.link_id = u.link_id
"""

# Under the row's lock: a link is voided, superseded or signed first, and signed once. `attempt` is joined and the three
# columns are tested as one, lest PostgreSQL read an index to its end that was small when the plan was made.
_SIGN = """
UPDATE signer.register AS r
SET intent_body = NULL, intent_index = u.intent_index, signature_body = u.signature_body
FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bytea[])
    AS u (link_id, attempt, intent_index, signature_body)
WHERE r.link_id = u.link_id AND r.attempt = u.attempt AND num_nulls(r.signature_body, r.voided_at, r.superseded_by) = 3
RETURNING r.link_id
"""

_FAIL = """
INSERT INTO signer.failed_signatures (link_id, attempt, number, body)
SELECT u.link_id, u.attempt,
       1 + coalesce((SELECT max(f.number) FROM signer.failed_signatures f
                     WHERE f.link_id = u.link_id AND f.attempt = u.attempt), 0), u.body
FROM unnest($1::text[], $2::integer[], $3::bytea[]) AS u (link_id, attempt, body)
ON CONFLICT DO NOTHING
"""

_FIND_FAILED = """
SELECT f.link_id, f.attempt, f.number, f.body FROM unnest($1::text[], $2::integer[]) AS u (link_id, attempt)
JOIN signer.failed_signatures f USING (link_id, attempt) ORDER BY f.link_id, f.number
"""

# What is voided gives back what it counts: the lock of its purse comes first, as where it is counted.
_PURSES = """
SELECT v.asset FROM signer.register r JOIN signer.velocity v USING (chain_id, address, asset)
WHERE r.attempt = 1 AND r.link_id IN (
    $1, (SELECT s.supersedes FROM signer.register s WHERE s.link_id = $1 AND s.attempt = 1)
)
ORDER BY v.chain_id, v.address, v.asset FOR UPDATE OF v
"""

# Whose mark a link has that may be voided: that one's lock comes first, as where it is superseded.
_SUPERSEDED = """
SELECT r.link_id FROM signer.register r
WHERE r.attempt = 1 AND r.link_id = (SELECT s.supersedes FROM signer.register s WHERE s.link_id = $1 AND s.attempt = 1)
FOR UPDATE
"""

_VOID = """
INSERT INTO signer.register AS r (link_id, attempt, voided_at, void_cause) VALUES ($1, 1, now(), $2)
ON CONFLICT (link_id, attempt) DO UPDATE
SET voided_at = coalesce(r.voided_at, excluded.voided_at), void_cause = coalesce(r.void_cause, excluded.void_cause),
    intent_body = NULL
WHERE r.signature_body IS NULL AND r.superseded_by IS NULL
RETURNING r.supersedes
"""

# What was superseded before it was signed was promised to stay so: it is voided with the link that took its place.
_GIVE_BACK = """
UPDATE signer.register AS r
SET superseded_by = NULL,
    voided_at = CASE WHEN f.signature_body IS NULL THEN now() END,
    void_cause = CASE WHEN f.signature_body IS NULL THEN $3 END,
    intent_body = CASE WHEN f.signature_body IS NOT NULL THEN r.intent_body END
FROM signer.register f
WHERE r.link_id = $1 AND r.superseded_by = $2 AND f.link_id = r.link_id AND f.attempt = 1
"""

_IS_SIGNED = "SELECT signature_body IS NOT NULL FROM signer.register WHERE link_id = $1 AND attempt = 1"


class Store:
    """Every method raises WalletError DATABASE_UNAVAILABLE; whether a write that failed so took effect is unknown."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def enter(self, registrations: Sequence[Registration]) -> set[str]:
        """Enter new links; the ids of those that were entered. The others are there, voided, denied, or their nonce is
        another link's: `find` tells."""
        # One order for all callers, so that they queue instead of deadlocking.
        ordered = sorted(registrations, key=lambda one: one.key)
        found = await self._rows(
            _ENTER,
            [one.link_id for one in ordered],
            [one.key.chain_id for one in ordered],
            [one.key.address for one in ordered],
            [one.key.nonce for one in ordered],
            [one.unsigned_tx for one in ordered],
            [one.policy_version for one in ordered],
            [one.intent_body for one in ordered],
        )
        return {row["link_id"] for row in found}

    async def find(
        self, wanted: Sequence[tuple[str, NonceKey]]
    ) -> tuple[dict[str, list[Registered]], dict[NonceKey, str]]:
        """The rows of these links, by attempt, and the other links that hold one of these nonces."""
        found = await self._rows(
            _FIND,
            [link_id for link_id, _ in wanted],
            [key.chain_id for _, key in wanted],
            [key.address for _, key in wanted],
            [key.nonce for _, key in wanted],
        )
        link_ids = {link_id for link_id, _ in wanted}
        registered: dict[str, list[Registered]] = {}
        holders: dict[NonceKey, str] = {}
        for link_id, attempt, chain_id, address, nonce, *rest in found:
            key = NonceKey(chain_id, Address(address), nonce) if address is not None else None
            if link_id in link_ids:
                registered.setdefault(link_id, []).append(Registered(link_id, attempt, key, *rest))
            elif key is not None:
                holders[key] = link_id
        for of_link in registered.values():
            of_link.sort(key=lambda row: row.attempt)
        return registered, holders

    async def deny(self, denials: Sequence[Denial]) -> dict[str, Denial]:
        """Store denials where a link has none yet, and was not allowed before; what is stored now, by link id."""
        ordered = sorted(denials, key=lambda one: one.link_id)
        await self._rows(
            _DENY,
            [one.link_id for one in ordered],
            [one.digest for one in ordered],
            [one.policy_version for one in ordered],
            [one.rule for one in ordered],
            [one.intent_body for one in ordered],
        )
        return await self.find_denials([one.link_id for one in ordered])

    async def find_denials(self, link_ids: Sequence[str]) -> dict[str, Denial]:
        denials = [Denial(*row) for row in await self._rows(_FIND_DENIALS, list(link_ids))]
        return {denial.link_id: denial for denial in denials}

    async def denials_entered(self, indexes: dict[str, int]) -> None:
        """Remember where the log has these links' denied intents, and drop the bodies."""
        ordered = sorted(indexes.items())
        await self._rows(
            _DENIALS_ENTERED,
            [link_id for link_id, _ in ordered],
            [index for _, index in ordered],
        )

    async def store_signatures(self, signed: Sequence[SignedRow]) -> set[str]:
        """Store signatures where a link has none and is not voided, and drop the intents, which the log has; the ids of
        those that were stored."""
        ordered = sorted(signed)
        found = await self._rows(
            _SIGN,
            [one.link_id for one in ordered],
            [one.attempt for one in ordered],
            [one.intent_index for one in ordered],
            [one.signature_body for one in ordered],
        )
        return {row["link_id"] for row in found}

    async def store_failures(self, failures: Sequence[tuple[str, int, bytes]]) -> None:
        """Add a failed signature's body to each attempt of a link."""
        ordered = sorted(failures)
        await self._rows(
            _FAIL,
            [link_id for link_id, _, _ in ordered],
            [attempt for _, attempt, _ in ordered],
            [body for _, _, body in ordered],
        )

    async def find_failures(self, attempts: Sequence[tuple[str, int]]) -> list[FailedRow]:
        found = await self._rows(
            _FIND_FAILED, [link_id for link_id, _ in attempts], [attempt for _, attempt in attempts]
        )
        return [FailedRow(*row) for row in found]

    async def void(self, link_id: str, cause: str) -> None:
        """Leave a tombstone, also where the link is unknown. A superseding one gives the mark back in the same commit.
        One that is superseded is never signed without: its row stays, so that its nonce is nobody else's.

        Raises:
            WalletError: ALREADY_SIGNED when a signature is stored.
        """
        if not await in_transaction(self._database, lambda connection: _void(connection, link_id, cause)):
            ((signed,),) = await self._rows(_IS_SIGNED, link_id)
            if signed:
                raise WalletError(Reason.ALREADY_SIGNED, Reason.ALREADY_SIGNED.meaning)

    async def clock(self) -> datetime:
        """The database's."""
        ((now,),) = await self._rows("SELECT now()")
        return cast(datetime, now)

    async def ping(self) -> None:
        await self._rows("SELECT 1")

    async def _rows(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        return await in_statement(self._database, statement, *arguments)


async def _void(connection: AsyncConnection, link_id: str, cause: str) -> bool:
    await rows(connection, _PURSES, link_id)
    await rows(connection, _SUPERSEDED, link_id)
    voided = await rows(connection, _VOID, link_id, cause)
    if voided and voided[0][0]:
        await connection.exec_driver_sql(_GIVE_BACK, (voided[0][0], link_id, cause))
    return bool(voided)
