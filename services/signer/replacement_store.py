"""Further rows of the register: fee bumps of a signed link, and the link that supersedes another.

All of them take the lock of the first row of the link that they are about. So a bump comes before superseding and is
marked with the rest of its link, or after it and finds the mark. As with first rows, what another policy than the one
in force has judged is not entered: it is judged again.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from services.core.errors import Reason, WalletError
from services.runtime.db import Database
from services.signer.restarting import in_statement, in_transaction, rows
from services.signer.store import Registration

_BUMP = """
WITH first AS MATERIALIZED (
    SELECT r.link_id FROM signer.register r
    WHERE r.link_id = ANY ($1::text[]) AND r.attempt = 1 AND r.superseded_by IS NULL AND r.voided_at IS NULL
    ORDER BY r.link_id FOR UPDATE
)
INSERT INTO signer.register
    (link_id, attempt, chain_id, address, nonce, unsigned_tx, decision, policy_version, intent_body, supersedes)
SELECT u.link_id, u.attempt, u.chain_id, u.address, u.nonce, u.unsigned_tx, 'allow', u.policy_version, u.intent_body,
       u.supersedes
FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bytea[], $5::bigint[], $6::bytea[], $7::integer[], $8::bytea[],
            $9::text[])
    AS u (link_id, attempt, chain_id, address, nonce, unsigned_tx, policy_version, intent_body, supersedes)
JOIN first USING (link_id)
WHERE EXISTS (
    SELECT FROM signer.register r
    WHERE r.link_id = u.link_id AND r.attempt = u.attempt - 1 AND r.signature_body IS NOT NULL
)
    AND u.policy_version = (SELECT max(version) FROM signer.policy_versions)
ON CONFLICT DO NOTHING
RETURNING link_id
"""

_HOLDER = """
SELECT link_id, supersedes FROM signer.register
WHERE chain_id = $1 AND address = $2 AND nonce = $3 AND attempt = 1
    AND voided_at IS NULL AND coalesce(supersedes, '') = ''
FOR UPDATE
"""

_SUPERSEDE = """
INSERT INTO signer.register
    (link_id, attempt, chain_id, address, nonce, unsigned_tx, decision, policy_version, intent_body, supersedes)
SELECT $1::text, 1, $2::bigint, $3::bytea, $4::bigint, $5::bytea, 'allow', $6::integer, $7::bytea, $8::text
WHERE NOT EXISTS (SELECT FROM signer.denials d WHERE d.link_id = $1)
    AND $6 = (SELECT max(version) FROM signer.policy_versions)
ON CONFLICT DO NOTHING
RETURNING link_id
"""

# A version before this one may have left the mark of a link that it voided.
_MARK = "UPDATE signer.register SET superseded_by = $2 WHERE link_id = $1"


class ReplacementStore:
    """Every method raises WalletError DATABASE_UNAVAILABLE; whether a write that failed so took effect is unknown."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def enter_bumps(self, bumps: Sequence[Registration]) -> set[str]:
        """Enter further transactions of links whose last one is signed, if their policy is in force; the ids of those
        that were entered."""
        ordered = sorted(bumps, key=lambda one: one.link_id)
        entered = await in_statement(
            self._database,
            _BUMP,
            [one.link_id for one in ordered],
            [one.attempt for one in ordered],
            [one.key.chain_id for one in ordered],
            [one.key.address for one in ordered],
            [one.key.nonce for one in ordered],
            [one.unsigned_tx for one in ordered],
            [one.policy_version for one in ordered],
            [one.intent_body for one in ordered],
            [one.supersedes for one in ordered],
        )
        return {row["link_id"] for row in entered}

    async def supersede(self, registration: Registration) -> bool:
        """Enter a superseding link and mark the one that it supersedes, together. False if it is there, or another that
        supersedes the same, or its policy is no more in force.

        Raises:
            WalletError: NONCE_REGISTERED if the nonce is not that of the link that it names, or not free where it names
                none; INVALID_REQUEST if that one supersedes another itself.
        """
        return await in_transaction(self._database, lambda connection: _supersede(connection, registration))


async def _supersede(connection: AsyncConnection, registration: Registration) -> bool:
    key, superseded = registration.key, registration.supersedes
    holders = await rows(connection, _HOLDER, key.chain_id, key.address, key.nonce)
    holder, holder_supersedes = holders[0] if holders else ("", None)
    if holder == registration.link_id:
        return False
    if holder != superseded:
        raise WalletError(
            Reason.NONCE_REGISTERED,
            "the nonce is not that of the link to supersede",
            field="supersedes",
            rule="names the link that has the nonce, or none where no link has it",
        )
    if holder_supersedes is not None:
        raise WalletError(
            Reason.INVALID_REQUEST, "it supersedes one itself", field="supersedes", rule="is a transfer's link"
        )
    entered = await rows(
        connection,
        _SUPERSEDE,
        registration.link_id,
        key.chain_id,
        key.address,
        key.nonce,
        registration.unsigned_tx,
        registration.policy_version,
        registration.intent_body,
        superseded,
    )
    if entered and superseded:
        await connection.exec_driver_sql(_MARK, (superseded, registration.link_id))
    return bool(entered)
