"""Approvals in PostgreSQL: each entry's exact body is stored before the log gets it, and counts once the log has it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.db import Database


class Approval(NamedTuple):
    """Somebody's word about a transfer or a policy, for `approve` or `reject`."""

    link_id: str
    approver: str
    decision: str
    at: datetime
    expires_at: datetime
    traceparent: str
    body: bytes
    # None until the log has it.
    evidence_index: int | None = None


class ApprovalRows:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def now(self) -> datetime:
        """The database's clock, which all replicas share."""
        async with self._database.begin() as connection:
            at: datetime = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
        return at

    async def of_links(self, link_ids: Sequence[str]) -> tuple[datetime, dict[str, list[Approval]]]:
        """The database's clock, and each link's approvals in the order they were given."""
        found: dict[str, list[Approval]] = {link_id: [] for link_id in link_ids}
        async with self._database.begin() as connection:
            at: datetime = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
            for row in await connection.execute(_OF_LINKS, {"ids": list(link_ids)}):
                found[row.link_id].append(Approval(*row))
        return at, found

    async def decide_transfer(self, transfer_id: str, approval: Approval) -> bool:
        """Store it while the transfer awaits approvals, and wake the saga: it enters what a crash leaves out."""
        return await self._decide(_DECIDE_TRANSFER, {"id": transfer_id}, approval)

    async def decide_policy(self, sha256: bytes, approval: Approval) -> bool:
        """Store it while the proposal is open."""
        return await self._decide(_DECIDE_POLICY, {"sha256": sha256}, approval)

    async def _decide(self, statement: object, subject: dict[str, object], approval: Approval) -> bool:
        values = approval._asdict()
        del values["evidence_index"]
        async with self._database.begin() as connection:
            stored = await connection.execute(statement, {**subject, **values})  # type: ignore[call-overload]
            return bool(stored.rowcount)

    async def entered(self, approvals: Sequence[tuple[Approval, int]]) -> None:
        """The log has these, at these indexes."""
        async with self._database.begin() as connection:
            await _mark(connection, approvals)

    async def entered_of_transfer(self, transfer_id: str, approval: Approval, index: int) -> None:
        """The same, and the saga looks at the transfer."""
        async with self._database.begin() as connection:
            await connection.execute(_WAKE, {"id": transfer_id})
            await _mark(connection, [(approval, index)])


async def _mark(connection: AsyncConnection, approvals: Sequence[tuple[Approval, int]]) -> None:
    values = {
        "links": [approval.link_id for approval, _ in approvals],
        "approvers": [approval.approver for approval, _ in approvals],
        "indexes": [index for _, index in approvals],
    }
    await connection.execute(_MARK, values)


_OF_LINKS = text(
    "SELECT link_id, approver, decision, at, expires_at, traceparent, body, evidence_index FROM approvals "
    "WHERE link_id = ANY(CAST(:ids AS text[])) ORDER BY at, approver"
)
_INSERT = (
    "INSERT INTO approvals (link_id, approver, decision, at, expires_at, traceparent, body) "
    "SELECT :link_id, :approver, :decision, :at, :expires_at, :traceparent, :body "
    "WHERE EXISTS (SELECT FROM open) ON CONFLICT (link_id, approver) DO NOTHING"
)
# Whoever has looked at the transfer without this approval can commit nothing more about it.
_AWAITING = (
    "UPDATE transfers SET fencing = fencing + 1, lease_owner = NULL, next_attempt_at = clock_timestamp() "
    "WHERE transfer_id = :id AND state = 'AWAITING_APPROVAL' AND failure IS NULL"
)
_WAKE = text(_AWAITING)
_DECIDE_TRANSFER = text(
    f"WITH open AS ({_AWAITING} AND approval_expires_at > clock_timestamp() RETURNING transfer_id) {_INSERT}"
)
_DECIDE_POLICY = text(
    "WITH open AS (SELECT sha256 FROM policy_proposals WHERE sha256 = :sha256 AND activated_at IS NULL "  # noqa: S608
    f"AND failure IS NULL AND expires_at > clock_timestamp() FOR UPDATE) {_INSERT}"
)
_MARK = text(
    """
    UPDATE approvals a SET evidence_index = i.evidence_index
    FROM unnest(CAST(:links AS text[]), CAST(:approvers AS text[]), CAST(:indexes AS bigint[]))
        AS i(link_id, approver, evidence_index)
    WHERE a.link_id = i.link_id AND a.approver = i.approver
    """
)
