"""The saga's commits: one statement a step, whatever the group's size.

Each answers the ids that it changed; a row with another fencing number is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from services.gateway.transfer import Transfer
from services.runtime.db import Database


class Progress:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def awaiting(self, rows: Sequence[tuple[Transfer, dict[str, Any]]]) -> set[str]:
        """Approvals are needed: (transfer, what the policy asks for). They are waited for from the first time on."""
        return await self._change(
            _AWAITING,
            [row[0] for row in rows],
            approval=[json.dumps(row[1]) for row in rows],
            valid_s=[row[1]["valid_s"] for row in rows],
        )

    async def waiting(self, transfers: Sequence[Transfer]) -> set[str]:
        """Not enough approvals yet: looked at again when they expire, or when one comes."""
        return await self._change(_WAITING, transfers)

    async def built(self, rows: Sequence[tuple[Transfer, bytes, int]]) -> set[str]:
        return await self._change(
            _BUILT, [row[0] for row in rows], unsigned_tx=[row[1] for row in rows], nonce=[row[2] for row in rows]
        )

    async def signed(self, rows: Sequence[tuple[Transfer, bytes, bytes]]) -> set[str]:
        """raw_tx and tx_hash. The intent is entered: the personal fields go."""
        return await self._change(
            _SIGNED, [row[0] for row in rows], raw_tx=[row[1] for row in rows], tx_hash=[row[2] for row in rows]
        )

    async def handed_over(self, rows: Sequence[tuple[Transfer, bool]]) -> set[str]:
        """Broadcaster holds them: (transfer, already requested from a node). The follower does the rest."""
        return await self._change(_HANDED_OVER, [row[0] for row in rows], submitted=[row[1] for row in rows])

    async def failing(self, rows: Sequence[tuple[Transfer, dict[str, Any]]]) -> set[str]:
        return await self._change(_FAILING, [row[0] for row in rows], failure=[json.dumps(row[1]) for row in rows])

    async def not_failing(self, rows: Sequence[tuple[Transfer, float]]) -> set[str]:
        """A signature exists after all: try again from the row's state, after so many seconds."""
        return await self._change(_NOT_FAILING, [row[0] for row in rows], delay_s=[row[1] for row in rows])

    async def failed(self, transfers: Sequence[Transfer]) -> set[str]:
        return await self._change(_FAILED, transfers)

    async def ended(self, rows: Sequence[tuple[Transfer, dict[str, Any]]]) -> set[str]:
        """Signed, and another transaction with the nonce is finalized: failed, and why."""
        return await self._change(_ENDED, [row[0] for row in rows], failure=[json.dumps(row[1]) for row in rows])

    async def postponed(self, rows: Sequence[tuple[Transfer, float]]) -> set[str]:
        """Give the lease back and try again after so many seconds."""
        return await self._change(_POSTPONED, [row[0] for row in rows], delay_s=[row[1] for row in rows])

    async def _change(self, statement: Any, transfers: Sequence[Transfer], **columns: list[Any]) -> set[str]:
        if not transfers:
            return set()
        values = {"ids": [t.transfer_id for t in transfers], "fencing": [t.fencing for t in transfers], **columns}
        async with self._database.begin() as connection:
            return {row.transfer_id for row in (await connection.execute(statement, values)).all()}


def fenced_change(assignments: str, condition: str = "TRUE", **types: str) -> Any:
    """A bulk UPDATE of fenced rows that enters an event where the state changes."""
    columns = "".join(f", CAST(:{name} AS {kind}[])" for name, kind in types.items())
    names = "".join(f", {name}" for name in types)
    return text(
        f"""
        WITH item AS (
            SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:fencing AS bigint[]){columns})
                AS i(transfer_id, fencing{names})
        ), locked AS (
            SELECT t.transfer_id, t.state FROM transfers t JOIN item USING (transfer_id)
            WHERE t.fencing = item.fencing AND {condition} ORDER BY t.transfer_id FOR UPDATE OF t
        ), changed AS (
            UPDATE transfers t SET updated_at = now(), {assignments}
            FROM item JOIN locked USING (transfer_id) WHERE t.transfer_id = item.transfer_id
            RETURNING t.transfer_id, t.state, locked.state AS old_state
        ), entered AS (
            INSERT INTO transfer_events (transfer_id, state, at)
            SELECT transfer_id, state, clock_timestamp() FROM changed WHERE state <> old_state ORDER BY transfer_id
        )
        SELECT transfer_id FROM changed
        """  # noqa: S608
    )


_SOON = "clock_timestamp() + item.delay_s * interval '1 second'"
# A bump may have been asked for meanwhile: then it stays due.
END_WORK = (
    "lease_owner = NULL, next_attempt_at = CASE WHEN t.replacement_wanted IS NULL THEN NULL ELSE t.next_attempt_at END"
)
_DROP_WORK = "lease_owner = NULL, next_attempt_at = NULL, replacement_wanted = NULL, stall = NULL"
_UNTIL_EXPIRY = "attempts = 0, lease_owner = NULL, next_attempt_at = "
_DEADLINE = "coalesce(t.approval_expires_at, clock_timestamp() + item.valid_s * interval '1 second')"

_AWAITING = fenced_change(
    f"state = 'AWAITING_APPROVAL', approval = CAST(item.approval AS jsonb), approval_expires_at = {_DEADLINE}, "
    + _UNTIL_EXPIRY
    + _DEADLINE,
    approval="text",
    valid_s="bigint",
)
_WAITING = fenced_change(_UNTIL_EXPIRY + "t.approval_expires_at")
_BUILT = fenced_change(
    "state = 'BUILT', attempts = 0, unsigned_tx = item.unsigned_tx, nonce = item.nonce",
    unsigned_tx="bytea",
    nonce="bigint",
)
_SIGNED = fenced_change(
    "state = 'SIGNED', attempts = 0, personal = NULL, raw_tx = item.raw_tx, tx_hash = item.tx_hash",
    raw_tx="bytea",
    tx_hash="bytea",
)
# The follower may have been faster: a later state stays.
_HANDED_OVER = fenced_change(
    "state = CASE WHEN t.state = 'SIGNED' AND item.submitted THEN 'SUBMITTED' ELSE t.state END, attempts = 0, "
    + END_WORK,
    submitted="boolean",
)
_FAILING = fenced_change("failure = CAST(item.failure AS jsonb)", failure="text")
_NOT_FAILING = fenced_change(
    f"failure = NULL, attempts = t.attempts + 1, lease_owner = NULL, next_attempt_at = {_SOON}",
    delay_s="double precision",
)
_FAILED = fenced_change("state = 'FAILED', personal = NULL, cancelled_by = NULL, " + _DROP_WORK)
_ENDED = fenced_change(
    "state = 'FAILED', failure = CAST(item.failure AS jsonb), personal = NULL, cancelled_by = NULL, " + _DROP_WORK,
    "t.nonce_spent AND t.state NOT IN ('FINALIZED', 'FAILED')",
    failure="text",
)
_POSTPONED = fenced_change(
    f"attempts = t.attempts + 1, lease_owner = NULL, next_attempt_at = {_SOON}", delay_s="double precision"
)
