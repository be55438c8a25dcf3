"""What signer keeps in PostgreSQL: the register, denials, failed signatures, policy versions. Many rows a statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import TextClause, text
from sqlalchemy.engine import Row
from sqlalchemy.exc import DBAPIError

from services.core.addresses import Address
from services.core.digests import Digest
from services.runtime.db import Database

# Deadlock and serialization failure: another call took the same rows in another order.
_RESTART_STATES = ("40P01", "40001")
_RESTARTS = 3


class NonceKey(NamedTuple):
    chain_id: int
    address: Address
    nonce: int


class Registration(NamedTuple):
    """A link's first transaction, as it enters the register."""

    link_id: str
    key: NonceKey
    unsigned_tx: bytes
    policy_version: int
    intent_body: bytes


@dataclass(frozen=True, slots=True)
class Registered:
    """A row of the register: its intent's body, or where that is in the log. A tombstone may have neither."""

    link_id: str
    key: NonceKey | None
    unsigned_tx: bytes | None
    intent_body: bytes | None
    intent_index: int | None
    signature_body: bytes | None
    voided: bool


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
    intent_index: int
    signature_body: bytes


class FailedRow(NamedTuple):
    link_id: str
    number: int  # counts from 1 within the link
    body: bytes


class PolicyRow(NamedTuple):
    version: int
    sha256: bytes
    document: bytes
    traceparent: str
    body: bytes


# A denied link stays denied: its log is closed.
_ENTER = text("""
INSERT INTO signer.register
    (link_id, attempt, chain_id, address, nonce, unsigned_tx, decision, policy_version, intent_body)
SELECT u.link_id, 1, u.chain_id, u.address, u.nonce, u.unsigned_tx, 'allow', u.policy_version, u.intent_body
FROM unnest(CAST(:link_ids AS text[]), CAST(:chain_ids AS bigint[]), CAST(:addresses AS bytea[]),
            CAST(:nonces AS bigint[]), CAST(:unsigned_txs AS bytea[]), CAST(:policy_versions AS integer[]),
            CAST(:intent_bodies AS bytea[]))
    AS u (link_id, chain_id, address, nonce, unsigned_tx, policy_version, intent_body)
WHERE NOT EXISTS (SELECT FROM signer.denials d WHERE d.link_id = u.link_id)
ON CONFLICT DO NOTHING
RETURNING link_id
""")

_FIND = text("""
SELECT link_id, chain_id, address, nonce, unsigned_tx, intent_body, intent_index, signature_body,
       voided_at IS NOT NULL AS voided
FROM signer.register
WHERE attempt = 1 AND link_id = ANY (CAST(:link_ids AS text[]))
UNION ALL
SELECT r.link_id, r.chain_id, r.address, r.nonce, NULL, NULL, NULL, NULL, false
FROM unnest(CAST(:chain_ids AS bigint[]), CAST(:addresses AS bytea[]), CAST(:nonces AS bigint[]))
    AS u (chain_id, address, nonce)
JOIN signer.register r USING (chain_id, address, nonce)
WHERE r.attempt = 1 AND r.voided_at IS NULL AND r.link_id <> ALL (CAST(:link_ids AS text[]))
""")

_DENY = text("""
INSERT INTO signer.denials (link_id, digest, policy_version, rule, intent_body)
SELECT * FROM unnest(CAST(:link_ids AS text[]), CAST(:digests AS bytea[]), CAST(:policy_versions AS integer[]),
                     CAST(:rules AS text[]), CAST(:intent_bodies AS bytea[]))
ON CONFLICT DO NOTHING
""")

_FIND_DENIALS = text("""
SELECT link_id, digest, policy_version, rule, intent_body, intent_index FROM signer.denials
WHERE link_id = ANY (CAST(:link_ids AS text[]))
""")

_DENIALS_ENTERED = text("""
UPDATE signer.denials AS d SET intent_body = NULL, intent_index = u.intent_index
FROM unnest(CAST(:link_ids AS text[]), CAST(:intent_indexes AS bigint[])) AS u (link_id, intent_index)
WHERE d.link_id = u.link_id
""")

# Under the row's lock: a link is voided or signed, never both, and signed once.
_SIGN = text("""
UPDATE signer.register AS r
SET intent_body = NULL, intent_index = u.intent_index, signature_body = u.signature_body
FROM unnest(CAST(:link_ids AS text[]), CAST(:intent_indexes AS bigint[]), CAST(:signature_bodies AS bytea[]))
    AS u (link_id, intent_index, signature_body)
WHERE r.link_id = u.link_id AND r.attempt = 1 AND r.signature_body IS NULL AND r.voided_at IS NULL
RETURNING r.link_id
""")

_FAIL = text("""
INSERT INTO signer.failed_signatures (link_id, attempt, number, body)
SELECT u.link_id, 1,
       1 + coalesce((SELECT max(f.number) FROM signer.failed_signatures f
                     WHERE f.link_id = u.link_id AND f.attempt = 1), 0), u.body
FROM unnest(CAST(:link_ids AS text[]), CAST(:bodies AS bytea[])) AS u (link_id, body)
ON CONFLICT DO NOTHING
""")

_FIND_FAILED = text("""
SELECT link_id, number, body FROM signer.failed_signatures
WHERE attempt = 1 AND link_id = ANY (CAST(:link_ids AS text[])) ORDER BY link_id, number
""")

_VOID = text("""
INSERT INTO signer.register AS r (link_id, attempt, voided_at, void_cause) VALUES (:link_id, 1, now(), :cause)
ON CONFLICT (link_id, attempt) DO UPDATE
SET voided_at = coalesce(r.voided_at, excluded.voided_at), void_cause = coalesce(r.void_cause, excluded.void_cause),
    intent_body = NULL
WHERE r.signature_body IS NULL
RETURNING 1
""")


class Store:
    """Every method raises WalletError DATABASE_UNAVAILABLE; whether a write that failed so took effect is unknown."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def enter(self, registrations: Sequence[Registration]) -> set[str]:
        """Enter new links; the ids of those that were entered. The others are there, voided, denied, or their nonce is
        another link's: `find` tells."""
        # One order for all callers, so that they queue instead of deadlocking.
        ordered = sorted(registrations, key=lambda one: one.key)
        rows = await self._rows(
            _ENTER,
            link_ids=[one.link_id for one in ordered],
            chain_ids=[one.key.chain_id for one in ordered],
            addresses=[one.key.address for one in ordered],
            nonces=[one.key.nonce for one in ordered],
            unsigned_txs=[one.unsigned_tx for one in ordered],
            policy_versions=[one.policy_version for one in ordered],
            intent_bodies=[one.intent_body for one in ordered],
        )
        return {row.link_id for row in rows}

    async def find(self, wanted: Sequence[tuple[str, NonceKey]]) -> tuple[dict[str, Registered], dict[NonceKey, str]]:
        """The rows of these links, and the other links that hold one of these nonces."""
        rows = await self._rows(
            _FIND,
            link_ids=[link_id for link_id, _ in wanted],
            chain_ids=[key.chain_id for _, key in wanted],
            addresses=[key.address for _, key in wanted],
            nonces=[key.nonce for _, key in wanted],
        )
        link_ids = {link_id for link_id, _ in wanted}
        registered, holders = {}, {}
        for row in rows:
            key = NonceKey(row.chain_id, Address(row.address), row.nonce) if row.address is not None else None
            if row.link_id in link_ids:
                registered[row.link_id] = Registered(
                    row.link_id, key, row.unsigned_tx, row.intent_body, row.intent_index, row.signature_body, row.voided
                )
            elif key is not None:
                holders[key] = row.link_id
        return registered, holders

    async def deny(self, denials: Sequence[Denial]) -> dict[str, Denial]:
        """Store denials where a link has none yet; what is stored now, by link id."""
        ordered = sorted(denials, key=lambda one: one.link_id)
        await self._rows(
            _DENY,
            link_ids=[one.link_id for one in ordered],
            digests=[one.digest for one in ordered],
            policy_versions=[one.policy_version for one in ordered],
            rules=[one.rule for one in ordered],
            intent_bodies=[one.intent_body for one in ordered],
        )
        return await self.find_denials([one.link_id for one in ordered])

    async def find_denials(self, link_ids: Sequence[str]) -> dict[str, Denial]:
        rows = await self._rows(_FIND_DENIALS, link_ids=list(link_ids))
        return {
            row.link_id: Denial(
                row.link_id, Digest(row.digest), row.policy_version, row.rule, row.intent_body, row.intent_index
            )
            for row in rows
        }

    async def denials_entered(self, indexes: dict[str, int]) -> None:
        """Remember where the log has these links' denied intents, and drop the bodies."""
        ordered = sorted(indexes.items())
        await self._rows(
            _DENIALS_ENTERED,
            link_ids=[link_id for link_id, _ in ordered],
            intent_indexes=[index for _, index in ordered],
        )

    async def store_signatures(self, signed: Sequence[SignedRow]) -> set[str]:
        """Store signatures where a link has none and is not voided, and drop the intents, which the log has; the ids of
        those that were stored."""
        ordered = sorted(signed)
        rows = await self._rows(
            _SIGN,
            link_ids=[one.link_id for one in ordered],
            intent_indexes=[one.intent_index for one in ordered],
            signature_bodies=[one.signature_body for one in ordered],
        )
        return {row.link_id for row in rows}

    async def store_failures(self, failures: Sequence[tuple[str, bytes]]) -> None:
        """Add a failed signature's body to each link."""
        ordered = sorted(failures)
        await self._rows(_FAIL, link_ids=[link_id for link_id, _ in ordered], bodies=[body for _, body in ordered])

    async def find_failures(self, link_ids: Sequence[str]) -> list[FailedRow]:
        rows = await self._rows(_FIND_FAILED, link_ids=list(link_ids))
        return [FailedRow(row.link_id, row.number, row.body) for row in rows]

    async def void(self, link_id: str, cause: str) -> bool:
        """Leave a tombstone, also where the link is unknown; False when a signature is stored."""
        return bool(await self._rows(_VOID, link_id=link_id, cause=cause))

    async def enter_policy(self, row: PolicyRow) -> PolicyRow:
        """Store a policy version unless it is there; what is stored now."""
        await self._rows(
            text("""
                INSERT INTO signer.policy_versions (version, sha256, document, traceparent, body)
                VALUES (:version, :sha256, :document, :traceparent, :body) ON CONFLICT DO NOTHING
            """),
            **row._asdict(),
        )
        rows = await self._rows(
            text("""
                SELECT version, sha256, document, traceparent, body FROM signer.policy_versions WHERE version = :version
            """),
            version=row.version,
        )
        stored = rows[0]
        return PolicyRow(stored.version, stored.sha256, stored.document, stored.traceparent, stored.body)

    async def ping(self) -> None:
        await self._rows(text("SELECT 1"))

    async def _rows(self, statement: TextClause, **parameters: Any) -> list[Row[Any]]:
        """One statement, which is one transaction."""
        for restart in range(_RESTARTS + 1):
            try:
                async with self._database.statement() as connection:
                    result = await connection.execute(statement, parameters)
                    return list(result.all()) if result.returns_rows else []
            except DBAPIError as error:
                if restart == _RESTARTS or getattr(error.orig, "sqlstate", None) not in _RESTART_STATES:
                    raise
        raise AssertionError("the loop returns or raises")
