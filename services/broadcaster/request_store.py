"""What is to be requested, requests and responses: rows that the leader of a chain writes, one commit a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.broadcaster.leader_transactions import EVENT, SHOWN, LeaderTransactions, delete_rows, lock_events
from services.broadcaster.outbox import NewOutboxRow, Outbox, OutboxRow
from services.broadcaster.submission import StallCause, State


@dataclass(frozen=True, slots=True)
class Due:
    """A submission whose turn it is to be requested, with its transaction that counts."""

    id: int
    transfer_id: str
    tx_hash: bytes
    account: bytes
    nonce: int
    raw_tx: bytes
    traceparent: str
    state: State
    attempts: int
    earlier_attempts: int
    answered_nodes: tuple[str, ...]
    silent_nodes: tuple[str, ...]  # asked in vain, the latest first


class SendOutcome(NamedTuple):
    """What a round of requests did to one transaction."""

    tx_hash: bytes
    answered_nodes: list[str]
    silent_nodes: list[str]
    is_answered: bool
    next_send_s: float  # from now
    stall: StallCause | None = None  # k nodes say so
    is_taken: bool = False  # k nodes have it: what they said before of fees and funds is over


class RequestStore:
    def __init__(self, transactions: LeaderTransactions, outbox: Outbox) -> None:
        self._transactions = transactions
        self._outbox = outbox
        self._chain_id = transactions.chain_id

    async def due(self, max_in_flight: int, limit: int, required: int, *, is_behind: bool) -> list[Due]:
        """Submissions to be requested now, by account and nonce: what the window admits, and what is to go again.

        While the watch `is_behind` nothing goes again that `required` nodes have answered: it may be mined.
        """
        async with self._transactions.statement() as connection:
            rows = await connection.execute(
                text("""
                    WITH waiting AS (
                        SELECT DISTINCT account FROM broadcaster.submissions
                        WHERE chain_id = :chain_id AND is_queued
                    ), admitted AS (
                        SELECT q.id FROM waiting w CROSS JOIN LATERAL (
                            SELECT s.id FROM broadcaster.submissions s
                            WHERE s.chain_id = :chain_id AND s.account = w.account AND s.is_queued
                            ORDER BY s.nonce LIMIT greatest(0, :max_in_flight - (
                                SELECT count(*) FROM broadcaster.submissions f
                                WHERE f.chain_id = :chain_id AND f.account = w.account AND f.is_open
                                    AND NOT f.is_queued AND f.block_number IS NULL))
                        ) q
                    ), again AS (
                        SELECT id FROM broadcaster.submissions
                        WHERE chain_id = :chain_id AND is_open AND NOT is_queued
                            AND next_send_at <= clock_timestamp() AND (block_number IS NULL OR NOT answered)
                            AND NOT (:is_behind AND cardinality(answered_nodes) >= :required)
                    )
                    SELECT id, transfer_id, tx_hash, account, nonce, raw_tx, traceparent, state, attempts,
                           earlier_attempts, answered_nodes, silent_nodes
                    FROM broadcaster.submissions
                    WHERE id IN (SELECT id FROM admitted UNION ALL SELECT id FROM again)
                        AND next_send_at <= clock_timestamp()
                    ORDER BY account, nonce LIMIT :limit
                """),
                {
                    "chain_id": self._chain_id,
                    "max_in_flight": max_in_flight,
                    "limit": limit,
                    "required": required,
                    "is_behind": is_behind,
                },
            )
            return [
                Due(
                    row.id,
                    row.transfer_id,
                    row.tx_hash,
                    row.account,
                    row.nonce,
                    row.raw_tx,
                    row.traceparent,
                    State(row.state),
                    row.attempts,
                    row.earlier_attempts,
                    tuple(row.answered_nodes),
                    tuple(row.silent_nodes),
                )
                for row in rows
            ]

    async def next_nonces(self, accounts: Sequence[bytes]) -> dict[bytes, int]:
        """One past the highest nonce ever requested here, of the accounts that have one."""
        async with self._transactions.statement() as connection:
            rows = await connection.execute(
                text("""
                    SELECT account, max(nonce) + 1 AS next FROM broadcaster.submissions
                    WHERE chain_id = :chain_id AND account = ANY (CAST(:accounts AS bytea[])) AND NOT is_queued
                    GROUP BY account
                """),
                {"chain_id": self._chain_id, "accounts": list(accounts)},
            )
            return {row.account: row.next for row in rows}

    async def add_requests(
        self, due: Sequence[Due], again: Sequence[bool], rows: Sequence[NewOutboxRow], guard_s: float
    ) -> list[OutboxRow] | None:
        """Commit a round: one more attempt for each of `due`, and its request bodies. Repeatable with the same rows.

        None, and nothing is changed, when one of them was replaced, or found in a block, since it was read: only the
        newest is sent, and no request may follow finality. `again`: all k nodes have answered before, so that k are
        asked anew.
        """
        try:
            async with self._transactions.begin() as connection:
                requested = await connection.execute(
                    text("""
                        UPDATE broadcaster.submissions s
                        SET state = CASE s.state WHEN 'QUEUED' THEN 'REQUESTED' ELSE s.state END,
                            attempts = s.attempts + 1,
                            answered_nodes = CASE WHEN d.again THEN '{}' ELSE s.answered_nodes END,
                            silent_nodes = CASE WHEN d.again THEN '{}' ELSE s.silent_nodes END,
                            next_send_at = clock_timestamp() + make_interval(secs => :guard_s)
                        FROM unnest(CAST(:ids AS bigint[]), CAST(:tx_hashes AS bytea[]), CAST(:attempts AS integer[]),
                                    CAST(:again AS boolean[])) AS d (id, tx_hash, attempts, again)
                        WHERE s.id = d.id AND s.tx_hash = d.tx_hash AND s.attempts = d.attempts AND s.is_open
                            AND (s.block_number IS NULL OR NOT s.answered)
                    """),
                    {
                        "ids": [one.id for one in due],
                        "tx_hashes": [one.tx_hash for one in due],
                        "attempts": [one.attempts for one in due],
                        "again": list(again),
                        "guard_s": guard_s,
                    },
                )
                # None at all, and its rows are there: this very round, in a commit whose answer was lost.
                if requested.rowcount != len(due) and (
                    requested.rowcount or not await self._outbox.holds(connection, rows)
                ):
                    raise _ChangedMeanwhile
                return await self._outbox.add(connection, rows)
        except _ChangedMeanwhile:
            return None

    async def postpone(self, tx_hashes: Sequence[bytes], closes: Sequence[int], pause_s: float) -> None:
        """Try submissions that were not sent again later; `closes` are request rows that the log refused."""
        async with self._transactions.begin() as connection:
            await delete_rows(connection, closes)
            await connection.execute(
                text("""
                    UPDATE broadcaster.submissions
                    SET state = CASE state WHEN 'REQUESTED' THEN 'QUEUED' ELSE state END,
                        next_send_at = clock_timestamp() + make_interval(secs => :pause_s)
                    WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[]))
                """),
                {"tx_hashes": list(tx_hashes), "pause_s": pause_s},
            )
        self._outbox.forget(closes)

    async def add_responses(
        self,
        outcomes: Sequence[SendOutcome],
        answers: Sequence[NewOutboxRow],
        closes: Sequence[int],
        at: datetime,
    ) -> list[OutboxRow]:
        """Commit what nodes answered; a response to a link that is being closed is dropped. Repeatable.

        `closes`: numbers of the request rows that these responses belong to.
        """
        async with self._transactions.begin() as connection:
            await delete_rows(connection, closes)
            await lock_events(connection)
            updated = await connection.execute(
                text(f"""
                    WITH updated AS (
                    UPDATE broadcaster.submissions s
                    SET state = CASE s.state WHEN 'REQUESTED' THEN 'SUBMITTED' ELSE s.state END,
                        answered = s.answered OR o.answered,
                        answered_nodes = s.answered_nodes || string_to_array(o.nodes, ' '),
                        -- A few are enough to ask the others first.
                        silent_nodes = (string_to_array(o.silent, ' ') || s.silent_nodes)[1:8],
                        next_send_at = clock_timestamp() + make_interval(secs => o.next_send_s),
                        submitted_at = coalesce(s.submitted_at, CASE WHEN o.answered THEN clock_timestamp() END),
                        stall = CASE WHEN s.block_number IS NOT NULL OR NOT s.is_open THEN s.stall
                                     WHEN o.stall <> '' THEN o.stall
                                     WHEN o.taken AND s.stall <> 'NOT_MINED' THEN NULL
                                     ELSE s.stall END
                    FROM unnest(CAST(:tx_hashes AS bytea[]), CAST(:answered AS boolean[]), CAST(:nodes AS text[]),
                                CAST(:silent AS text[]), CAST(:next_send_s AS double precision[]),
                                CAST(:stalls AS text[]), CAST(:taken AS boolean[]))
                            AS o (tx_hash, answered, nodes, silent, next_send_s, stall, taken),
                         broadcaster.submissions old
                    WHERE s.tx_hash = o.tx_hash AND old.id = s.id
                        AND s.inclusion_status IS DISTINCT FROM 'finalized'
                    RETURNING s.*, old.state = 'REQUESTED' OR old.stall IS DISTINCT FROM s.stall AS is_shown
                    ), entered AS (
                        INSERT INTO broadcaster.events ({EVENT})
                        SELECT {SHOWN}, :at FROM updated WHERE is_shown ORDER BY id
                    )
                    SELECT tx_hash FROM updated
                """),  # noqa: S608 - the columns are constants
                {
                    "at": at,
                    "tx_hashes": [outcome.tx_hash for outcome in outcomes],
                    "answered": [outcome.is_answered for outcome in outcomes],
                    "nodes": [" ".join(outcome.answered_nodes) for outcome in outcomes],
                    "silent": [" ".join(outcome.silent_nodes) for outcome in outcomes],
                    "next_send_s": [outcome.next_send_s for outcome in outcomes],
                    "stalls": [outcome.stall or "" for outcome in outcomes],
                    "taken": [outcome.is_taken for outcome in outcomes],
                },
            )
            open_hashes = {row.tx_hash for row in updated}
            if rest := [outcome for outcome in outcomes if outcome.tx_hash not in open_hashes]:
                open_hashes |= await self._answer_versions(connection, rest, at)
            rows = await self._outbox.add(connection, [row for row in answers if row.tx_hash in open_hashes])
        self._outbox.forget(closes)
        return rows

    async def unanswer(self, tx_hashes: Sequence[bytes], pause_s: float) -> None:
        """The log refuses what nodes answered of these: ask again, also where they are in a block by now."""
        async with self._transactions.begin() as connection:
            await connection.execute(
                text("""
                    UPDATE broadcaster.submissions
                    SET answered = false, answered_nodes = '{}', silent_nodes = '{}',
                        next_send_at = clock_timestamp() + make_interval(secs => :pause_s)
                    WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[])) AND is_open
                """),
                {"tx_hashes": list(tx_hashes), "pause_s": pause_s},
            )
            await connection.execute(
                text(
                    "UPDATE broadcaster.versions SET answered = false WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[]))"
                ),
                {"tx_hashes": list(tx_hashes)},
            )

    async def _answer_versions(
        self, connection: AsyncConnection, outcomes: Sequence[SendOutcome], at: datetime
    ) -> set[bytes]:
        """Of transactions that were replaced while they were on their way: only that they were answered counts."""
        answered = await connection.execute(
            text("""
                UPDATE broadcaster.versions v SET answered = v.answered OR o.answered
                FROM unnest(CAST(:tx_hashes AS bytea[]), CAST(:answered AS boolean[])) AS o (tx_hash, answered),
                     broadcaster.submissions s
                WHERE v.tx_hash = o.tx_hash AND s.id = v.submission_id
                    AND s.inclusion_status IS DISTINCT FROM 'finalized'
                RETURNING v.tx_hash, v.submission_id
            """),
            {
                "tx_hashes": [outcome.tx_hash for outcome in outcomes],
                "answered": [outcome.is_answered for outcome in outcomes],
            },
        )
        rows = answered.all()
        if rows:
            await connection.execute(
                text(f"""
                    WITH updated AS (
                        UPDATE broadcaster.submissions SET state = 'SUBMITTED'
                        WHERE id = ANY (CAST(:ids AS bigint[])) AND state = 'REQUESTED' RETURNING *
                    )
                    INSERT INTO broadcaster.events ({EVENT}) SELECT {SHOWN}, :at FROM updated ORDER BY id
                """),  # noqa: S608
                {"ids": [row.submission_id for row in rows], "at": at},
            )
        return {row.tx_hash for row in rows}


class _ChangedMeanwhile(Exception):
    """Rolls the transaction back."""
