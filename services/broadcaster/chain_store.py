"""What the leader of a chain writes: requests, responses, blocks, inclusions, events. One commit a method.

Only the leader writes these rows. Each transaction first checks the leader's epoch under a row lock that a takeover
waits for, so a leader that lost its lease writes nothing more; and within the process one transaction runs at a time,
so the outbox's numbers are in the order of commits.

Events of several chains share one sequence. Numbers are drawn under an advisory lock that ends with the transaction,
after its rows are visible: who has read a cursor has been shown every smaller one. A gap is a rollback, never a row
that appears later.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from services.broadcaster.inclusion import Inclusion
from services.broadcaster.submission import State
from services.core.errors import Reason, WalletError
from services.runtime.db import Database
from services.runtime.evidence_log import Entry

_EVENTS_LOCK = zlib.crc32(b"broadcaster.events")
_KEPT_PROOF_BYTES = 32 * 1024 * 1024

# What is true of a block, and who says so; {block} is its number, {nodes} who agreed that it is there.
_STATUS = "CASE WHEN {block} <= :finalized THEN 'finalized' WHEN {block} <= :safe THEN 'safe' ELSE 'included' END"
_NODES = (
    "CASE WHEN {block} <= :finalized THEN CAST(:finalized_nodes AS text[]) "
    "WHEN {block} <= :safe THEN CAST(:safe_nodes AS text[]) ELSE {nodes} END"
)
_DECIDED = "s.transfer_id, s.tx_hash, s.traceparent, s.inclusion_number, s.inclusion_status, s.agreeing_nodes"


@dataclass(frozen=True, slots=True)
class Due:
    """A submission whose turn it is to be requested."""

    id: int
    transfer_id: str
    tx_hash: bytes
    account: bytes
    nonce: int
    raw_tx: bytes
    traceparent: str
    state: State
    attempts: int
    answered_nodes: tuple[str, ...]
    silent_nodes: tuple[str, ...]  # asked in vain, the latest first


class OutboxRow(NamedTuple):
    """An entry of ours: committed, and appended or about to be."""

    seq: int
    tx_hash: bytes
    node: str
    attempt: int
    entry: Entry


class NewOutboxRow(NamedTuple):
    tx_hash: bytes
    node: str
    attempt: int
    entry: Entry


class SendOutcome(NamedTuple):
    """What a round of requests did to one submission."""

    tx_hash: bytes
    answered_nodes: list[str]
    silent_nodes: list[str]
    is_answered: bool
    next_send_s: float  # from now


@dataclass(frozen=True, slots=True)
class PendingInclusion:
    """An inclusion entry that is decided: proof, status and agreeing nodes are its exact body, `number` its id."""

    transfer_id: str
    tx_hash: bytes
    traceparent: str
    proof: bytes
    number: int
    status: str
    agreeing_nodes: tuple[str, ...]


class Height(NamedTuple):
    """The highest block that k nodes hold at some level, and the nodes; -1 when there is none."""

    number: int
    nodes: tuple[str, ...]


class _Proofs:
    """Proofs that were stored lately, by transaction: each is wanted two or three times within minutes."""

    def __init__(self) -> None:
        self._proofs: dict[bytes, bytes] = {}
        self._size = 0

    def keep(self, proofs: Iterable[tuple[bytes, bytes]]) -> None:
        for tx_hash, proof in proofs:
            self._size += len(proof) - len(self._proofs.get(tx_hash, b""))
            self._proofs[tx_hash] = proof
        while self._size > _KEPT_PROOF_BYTES:
            self._size -= len(self._proofs.pop(next(iter(self._proofs))))

    def get(self, tx_hash: bytes) -> bytes | None:
        return self._proofs.get(tx_hash)

    def clear(self) -> None:
        self._proofs.clear()
        self._size = 0


class ChainStore:
    def __init__(self, database: Database, chain_id: str, epoch: int) -> None:
        self._database = database
        self._chain_id = chain_id
        self._epoch = epoch
        self._one_at_a_time = asyncio.Lock()
        # Outbox rows that the log has; the next transaction deletes them.
        self._appended: set[int] = set()
        # Requests that the log has; they stay until their responses are committed, to be found after a crash.
        self._requested: set[int] = set()
        self._proofs = _Proofs()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        async with self._one_at_a_time:
            appended = list(self._appended)
            async with self._database.begin() as connection:
                held = await connection.execute(
                    text(
                        "SELECT 1 FROM broadcaster.chains WHERE chain_id = :chain_id AND epoch = :epoch FOR KEY SHARE"
                    ),
                    {"chain_id": self._chain_id, "epoch": self._epoch},
                )
                if held.one_or_none() is None:
                    raise WalletError(Reason.LEASE_LOST, Reason.LEASE_LOST.meaning)
                if appended:
                    await self._close(connection, appended)
                yield connection
            self._appended.difference_update(appended)

    # Sending

    async def due(self, max_in_flight: int, limit: int, required: int, *, is_behind: bool) -> list[Due]:
        """Submissions to be requested now, by account and nonce: what the window admits, and what is to go again.

        While the watch `is_behind` nothing goes again that `required` nodes have answered: it may be mined.
        """
        async with self._database.statement() as connection:
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
                           answered_nodes, silent_nodes
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
                    tuple(row.answered_nodes),
                    tuple(row.silent_nodes),
                )
                for row in rows
            ]

    async def next_nonces(self, accounts: Sequence[bytes]) -> dict[bytes, int]:
        """One past the highest nonce ever requested here, of the accounts that have one."""
        async with self._database.statement() as connection:
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

        None, and nothing is changed, when one of them was found in a block since it was read: no request may follow
        its finality. `again`: all k nodes have answered before, so that k are asked anew.
        """
        async with self._transaction() as connection:
            if any(one.state is not State.QUEUED for one in due) and await self._any_mined(connection, due):
                return None
            await connection.execute(
                text("""
                    UPDATE broadcaster.submissions s
                    SET state = CASE s.state WHEN 'QUEUED' THEN 'REQUESTED' ELSE s.state END,
                        attempts = s.attempts + 1,
                        answered_nodes = CASE WHEN d.again THEN '{}' ELSE s.answered_nodes END,
                        silent_nodes = CASE WHEN d.again THEN '{}' ELSE s.silent_nodes END,
                        next_send_at = clock_timestamp() + make_interval(secs => :guard_s)
                    FROM unnest(CAST(:ids AS bigint[]), CAST(:attempts AS integer[]), CAST(:again AS boolean[]))
                        AS d (id, attempts, again)
                    WHERE s.id = d.id AND s.attempts = d.attempts
                """),
                {
                    "ids": [one.id for one in due],
                    "attempts": [one.attempts for one in due],
                    "again": list(again),
                    "guard_s": guard_s,
                },
            )
            return await self._insert(connection, rows)

    async def _any_mined(self, connection: AsyncConnection, due: Sequence[Due]) -> bool:
        # By its attempts: what this round has requested, in a commit whose answer was lost, is requested.
        mined = await connection.execute(
            text("""
                SELECT 1 FROM unnest(CAST(:ids AS bigint[]), CAST(:attempts AS integer[])) AS d (id, attempts)
                JOIN broadcaster.submissions s ON s.id = d.id AND s.attempts = d.attempts
                WHERE s.block_number IS NOT NULL AND s.answered LIMIT 1
            """),
            {"ids": [one.id for one in due], "attempts": [one.attempts for one in due]},
        )
        return mined.one_or_none() is not None

    async def postpone(self, tx_hashes: Sequence[bytes], closes: Sequence[int], pause_s: float) -> None:
        """Try submissions that were not sent again later; `closes` are request rows that the log refused."""
        async with self._transaction() as connection:
            await self._close(connection, closes)
            await connection.execute(
                text("""
                    UPDATE broadcaster.submissions
                    SET state = CASE state WHEN 'REQUESTED' THEN 'QUEUED' ELSE state END,
                        next_send_at = clock_timestamp() + make_interval(secs => :pause_s)
                    WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[]))
                """),
                {"tx_hashes": list(tx_hashes), "pause_s": pause_s},
            )

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
        async with self._transaction() as connection:
            await self._close(connection, closes)
            await self._lock_events(connection)
            updated = await connection.execute(
                text("""
                    WITH updated AS (
                    UPDATE broadcaster.submissions s
                    SET state = CASE s.state WHEN 'REQUESTED' THEN 'SUBMITTED' ELSE s.state END,
                        answered = s.answered OR o.answered,
                        answered_nodes = s.answered_nodes || string_to_array(o.nodes, ' '),
                        -- A few are enough to ask the others first.
                        silent_nodes = (string_to_array(o.silent, ' ') || s.silent_nodes)[1:8],
                        next_send_at = clock_timestamp() + make_interval(secs => o.next_send_s)
                    FROM unnest(CAST(:tx_hashes AS bytea[]), CAST(:answered AS boolean[]), CAST(:nodes AS text[]),
                                CAST(:silent AS text[]), CAST(:next_send_s AS double precision[]))
                            AS o (tx_hash, answered, nodes, silent, next_send_s),
                         broadcaster.submissions old
                    WHERE s.tx_hash = o.tx_hash AND old.id = s.id
                        AND s.inclusion_status IS DISTINCT FROM 'finalized'
                    RETURNING s.*, old.state = 'REQUESTED' AS is_first
                    ), entered AS (
                        INSERT INTO broadcaster.events
                            (transfer_id, tx_hash, state, block_number, block_hash, receipt_status, fee_paid_wei, at)
                        SELECT transfer_id, tx_hash, state, block_number, block_hash, receipt_status, fee_paid_wei, :at
                        FROM updated WHERE is_first ORDER BY id
                    )
                    SELECT tx_hash FROM updated
                """),
                {
                    "at": at,
                    "tx_hashes": [outcome.tx_hash for outcome in outcomes],
                    "answered": [outcome.is_answered for outcome in outcomes],
                    "nodes": [" ".join(outcome.answered_nodes) for outcome in outcomes],
                    "silent": [" ".join(outcome.silent_nodes) for outcome in outcomes],
                    "next_send_s": [outcome.next_send_s for outcome in outcomes],
                },
            )
            open_hashes = {row.tx_hash for row in updated}
            rows = await self._insert(connection, [row for row in answers if row.tx_hash in open_hashes])
        self._requested.difference_update(closes)
        return rows

    # The outbox

    async def _close(self, connection: AsyncConnection, seqs: Sequence[int]) -> None:
        if seqs:
            await connection.execute(
                text("DELETE FROM broadcaster.outbox WHERE seq = ANY (CAST(:seqs AS bigint[]))"), {"seqs": list(seqs)}
            )

    async def outbox(self, transfer_ids: Sequence[str] | None = None) -> list[OutboxRow]:
        """What may not be in the log yet, oldest first: of some transfers, or of all."""
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text("""
                    SELECT seq, transfer_id, tx_hash, entry_id, kind, node, attempt, trace_id, span_id, body
                    FROM broadcaster.outbox
                    WHERE chain_id = :chain_id AND NOT seq = ANY (CAST(:appended AS bigint[]))
                        AND (CAST(:transfer_ids AS text[]) IS NULL
                             OR transfer_id = ANY (CAST(:transfer_ids AS text[])))
                    ORDER BY seq
                """),
                {
                    "chain_id": self._chain_id,
                    "appended": [*self._appended, *self._requested],
                    "transfer_ids": None if transfer_ids is None else list(transfer_ids),
                },
            )
            return [
                OutboxRow(
                    row.seq,
                    row.tx_hash,
                    row.node,
                    row.attempt,
                    Entry(row.transfer_id, row.entry_id, row.kind, row.trace_id, row.span_id, row.body),
                )
                for row in rows
            ]

    def note_appended(self, rows: Sequence[OutboxRow]) -> None:
        """The log has these rows, or refuses them for good: the next transaction deletes them, requests excepted."""
        for row in rows:
            (self._requested if row.entry.kind == "request" else self._appended).add(row.seq)

    async def _insert(self, connection: AsyncConnection, rows: Sequence[NewOutboxRow]) -> list[OutboxRow]:
        if not rows:
            return []
        inserted = await connection.execute(
            text("""
                INSERT INTO broadcaster.outbox
                    (chain_id, transfer_id, tx_hash, entry_id, kind, node, attempt, trace_id, span_id, body)
                SELECT :chain_id, r.* FROM unnest(
                    CAST(:transfer_ids AS text[]), CAST(:tx_hashes AS bytea[]), CAST(:entry_ids AS text[]),
                    CAST(:kinds AS text[]), CAST(:nodes AS text[]), CAST(:attempts AS integer[]),
                    CAST(:trace_ids AS text[]), CAST(:span_ids AS text[]), CAST(:bodies AS bytea[])) AS r
                -- There already when a commit took effect whose answer was lost: the same row, and its number.
                ON CONFLICT (transfer_id, entry_id) DO UPDATE SET entry_id = excluded.entry_id
                RETURNING seq, transfer_id, entry_id
            """),
            {
                "chain_id": self._chain_id,
                "transfer_ids": [row.entry.link_id for row in rows],
                "tx_hashes": [row.tx_hash for row in rows],
                "entry_ids": [row.entry.entry_id for row in rows],
                "kinds": [row.entry.kind for row in rows],
                "nodes": [row.node for row in rows],
                "attempts": [row.attempt for row in rows],
                "trace_ids": [row.entry.trace_id for row in rows],
                "span_ids": [row.entry.span_id for row in rows],
                "bodies": [row.entry.body for row in rows],
            },
        )
        numbers = {(row.transfer_id, row.entry_id): row.seq for row in inserted}
        return [OutboxRow(numbers[row.entry.link_id, row.entry.entry_id], *row) for row in rows]

    # Watching

    async def blocks(self) -> dict[int, bytes]:
        """The watched blocks that may still change, hash by number."""
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text("SELECT number, hash FROM broadcaster.blocks WHERE chain_id = :chain_id"),
                {"chain_id": self._chain_id},
            )
            return {row.number: row.hash for row in rows}

    async def unproven(self, tx_hashes: Sequence[bytes]) -> frozenset[bytes]:
        """Those of `tx_hashes` that were submitted here, and are in no block that was watched."""
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text("""
                    SELECT tx_hash FROM broadcaster.submissions
                    WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[])) AND chain_id = :chain_id AND block_number IS NULL
                """),
                {"tx_hashes": list(tx_hashes), "chain_id": self._chain_id},
            )
            return frozenset(row.tx_hash for row in rows)

    async def add_blocks(
        self,
        blocks: dict[int, bytes],
        inclusions: Sequence[tuple[Inclusion, tuple[str, ...]]],
        safe: int,
        finalized: Height,
        safe_nodes: tuple[str, ...],
        limit: int,
    ) -> list[PendingInclusion]:
        """Commit watched blocks with the proofs found in them, and decide which inclusion entries are due.

        A submission gets the highest status that is true of its block, once; `safe` is the height whose status may be
        entered for its own sake.
        """
        heights = {
            "safe": safe,
            "finalized": finalized.number,
            "safe_nodes": list(safe_nodes),
            "finalized_nodes": list(finalized.nodes),
        }
        stored: Sequence[Row[Any]] = ()
        decided: list[Row[Any]] = []
        async with self._transaction() as connection:
            if blocks:
                await connection.execute(
                    text("""
                        INSERT INTO broadcaster.blocks (chain_id, number, hash)
                        SELECT :chain_id, b.* FROM unnest(CAST(:numbers AS bigint[]), CAST(:hashes AS bytea[])) AS b
                    """),
                    {"chain_id": self._chain_id, "numbers": list(blocks), "hashes": list(blocks.values())},
                )
                # Below finality only the newest is kept: the next block's parent is compared with it.
                await connection.execute(
                    text("""
                        DELETE FROM broadcaster.blocks WHERE chain_id = :chain_id AND number < :finalized
                    """),
                    {"chain_id": self._chain_id, "finalized": min(finalized.number, max(blocks))},
                )
            if inclusions:
                stored = await self._store_proofs(connection, inclusions, heights)
                decided += [row for row in stored if row.is_decided]
            decided += await self._decide(connection, heights, limit)
        proofs = {one.tx_hash: one.proof for one, _ in inclusions}
        self._proofs.keep((row.tx_hash, proofs[row.tx_hash]) for row in stored)
        return await self._pending(decided)

    async def _store_proofs(
        self,
        connection: AsyncConnection,
        inclusions: Sequence[tuple[Inclusion, tuple[str, ...]]],
        heights: dict[str, Any],
    ) -> Sequence[Row[Any]]:
        """Store proofs; where nodes have answered, the entry is decided with them."""
        stored = await connection.execute(
            text(f"""
                UPDATE broadcaster.submissions s
                SET block_number = p.block_number, block_hash = p.block_hash, receipt_status = p.receipt_status,
                    fee_paid_wei = CAST(p.fee_paid_wei AS numeric), proof = p.proof,
                    agreeing_nodes = {_NODES.format(block="p.block_number", nodes="string_to_array(p.nodes, ' ')")},
                    inclusion_pending = s.answered,
                    inclusion_number = s.inclusion_number + CASE WHEN s.answered THEN 1 ELSE 0 END,
                    inclusion_status = CASE WHEN s.answered THEN {_STATUS.format(block="p.block_number")} END
                FROM unnest(CAST(:tx_hashes AS bytea[]), CAST(:block_numbers AS bigint[]),
                            CAST(:block_hashes AS bytea[]), CAST(:receipt_statuses AS smallint[]),
                            CAST(:fees AS text[]), CAST(:proofs AS bytea[]), CAST(:nodes AS text[]))
                    AS p (tx_hash, block_number, block_hash, receipt_status, fee_paid_wei, proof, nodes)
                WHERE s.tx_hash = p.tx_hash AND s.block_number IS NULL
                RETURNING s.id, {_DECIDED}, s.answered AS is_decided
            """),  # noqa: S608
            {
                **heights,
                "tx_hashes": [one.tx_hash for one, _ in inclusions],
                "block_numbers": [one.block_number for one, _ in inclusions],
                "block_hashes": [one.block_hash for one, _ in inclusions],
                "receipt_statuses": [one.receipt_status for one, _ in inclusions],
                "fees": [str(one.fee_paid_wei) for one, _ in inclusions],
                "proofs": [one.proof for one, _ in inclusions],
                "nodes": [" ".join(nodes) for _, nodes in inclusions],
            },
        )
        return stored.all()

    async def _decide(self, connection: AsyncConnection, heights: dict[str, Any], limit: int) -> Sequence[Row[Any]]:
        rows = await connection.execute(
            text(f"""
                WITH chosen AS (
                    SELECT id FROM broadcaster.submissions
                    WHERE chain_id = :chain_id AND is_open AND NOT is_queued AND block_number IS NOT NULL
                        AND answered AND NOT inclusion_pending
                        AND (state = 'SUBMITTED' OR block_number <= :finalized
                             OR (state = 'INCLUDED' AND block_number <= :safe))
                    ORDER BY block_number, id LIMIT :limit
                )
                UPDATE broadcaster.submissions s
                SET inclusion_pending = true, inclusion_number = s.inclusion_number + 1,
                    inclusion_status = {_STATUS.format(block="s.block_number")},
                    agreeing_nodes = {_NODES.format(block="s.block_number", nodes="s.agreeing_nodes")}
                FROM chosen WHERE s.id = chosen.id
                RETURNING s.id, {_DECIDED}
            """),  # noqa: S608
            {**heights, "chain_id": self._chain_id, "limit": limit},
        )
        return rows.all()

    async def _pending(self, decided: Sequence[Row[Any]]) -> list[PendingInclusion]:
        """With their proofs: from memory, and the rows' own where it has none."""
        proofs = {row.tx_hash: self._proofs.get(row.tx_hash) for row in decided}
        if unknown := [tx_hash for tx_hash, proof in proofs.items() if proof is None]:
            async with self._database.statement() as connection:
                rows = await connection.execute(
                    text(
                        "SELECT tx_hash, proof FROM broadcaster.submissions "
                        "WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[]))"
                    ),
                    {"tx_hashes": unknown},
                )
                proofs.update({row.tx_hash: row.proof for row in rows})
        return [
            _inclusion(row, proof)
            for row in sorted(decided, key=lambda row: row.id)
            if (proof := proofs[row.tx_hash]) is not None
        ]

    async def pending_inclusions(self) -> list[PendingInclusion]:
        """Inclusion entries that were decided and may not be in the log yet: after a crash."""
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text("""
                    SELECT transfer_id, tx_hash, traceparent, proof, inclusion_number, inclusion_status, agreeing_nodes
                    FROM broadcaster.submissions WHERE chain_id = :chain_id AND is_open AND NOT is_queued
                        AND block_number IS NOT NULL AND inclusion_pending ORDER BY id
                """),
                {"chain_id": self._chain_id},
            )
            return [_inclusion(row, row.proof) for row in rows]

    async def reopen_inclusions(self, refused: Sequence[bytes]) -> None:
        """The log has refused the pending inclusion of these: decide another one, by what is known then."""
        async with self._transaction() as connection:
            await connection.execute(
                text("""
                    UPDATE broadcaster.submissions SET inclusion_pending = false
                    WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[])) AND inclusion_pending
                """),
                {"tx_hashes": list(refused)},
            )

    async def settle_inclusions(self, entered: Sequence[bytes], at: datetime) -> None:
        """The log has the pending inclusion of these transactions: show the new state. A final one needs no proof."""
        async with self._transaction() as connection:
            await self._lock_events(connection)
            await connection.execute(
                text("""
                    WITH settled AS (
                        UPDATE broadcaster.submissions
                        SET inclusion_pending = false, state = upper(inclusion_status),
                            proof = CASE inclusion_status WHEN 'finalized' THEN NULL ELSE proof END
                        WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[])) AND inclusion_pending
                        RETURNING *
                    )
                    INSERT INTO broadcaster.events
                        (transfer_id, tx_hash, state, block_number, block_hash, receipt_status, fee_paid_wei, at)
                    SELECT transfer_id, tx_hash, state, block_number, block_hash, receipt_status, fee_paid_wei, :at
                    FROM settled ORDER BY id
                """),
                {"tx_hashes": list(entered), "at": at},
            )

    async def included_above(self, number: int) -> list[tuple[PendingInclusion, int, bytes, State]]:
        """(submission, block number, block hash, state) of what is included above `number`."""
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text("""
                    SELECT transfer_id, tx_hash, traceparent, proof, revocation_number AS inclusion_number,
                           inclusion_status, agreeing_nodes, block_number, block_hash, state
                    FROM broadcaster.submissions
                    WHERE chain_id = :chain_id AND is_open AND NOT is_queued AND block_number > :number ORDER BY id
                """),
                {"chain_id": self._chain_id, "number": number},
            )
            return [(_inclusion(row, row.proof), row.block_number, row.block_hash, State(row.state)) for row in rows]

    async def revoke(self, number: int, revocations: Sequence[NewOutboxRow], at: datetime) -> list[OutboxRow]:
        """Forget the blocks above `number`, and send what they held again, once the revocations are committed."""
        async with self._transaction() as connection:
            await connection.execute(
                text("DELETE FROM broadcaster.blocks WHERE chain_id = :chain_id AND number > :number"),
                {"chain_id": self._chain_id, "number": number},
            )
            await connection.execute(
                text("""
                    UPDATE broadcaster.submissions
                    SET state = CASE WHEN state IN ('INCLUDED', 'SAFE') THEN 'SUBMITTED' ELSE state END,
                        revocation_number = revocation_number
                            + CASE WHEN state IN ('INCLUDED', 'SAFE') THEN 1 ELSE 0 END,
                        block_number = NULL, block_hash = NULL, receipt_status = NULL, fee_paid_wei = NULL,
                        proof = NULL, agreeing_nodes = NULL, inclusion_status = NULL,
                        answered_nodes = '{}', silent_nodes = '{}', next_send_at = clock_timestamp()
                    WHERE chain_id = :chain_id AND is_open AND NOT is_queued AND block_number > :number
                        AND NOT inclusion_pending
                """),
                {"chain_id": self._chain_id, "number": number},
            )
            rows = await self._insert(connection, revocations)
            await self._lock_events(connection)
            await connection.execute(
                text("""
                    INSERT INTO broadcaster.events
                        (transfer_id, tx_hash, state, block_number, block_hash, receipt_status, fee_paid_wei, at)
                    SELECT transfer_id, tx_hash, state, block_number, block_hash, receipt_status, fee_paid_wei, :at
                    FROM broadcaster.submissions WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[])) ORDER BY id
                """),
                {"tx_hashes": [row.tx_hash for row in revocations], "at": at},
            )
        self._proofs.clear()
        return rows

    async def _lock_events(self, connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _EVENTS_LOCK})


def _inclusion(row: Row[Any], proof: bytes) -> PendingInclusion:
    return PendingInclusion(
        row.transfer_id,
        row.tx_hash,
        row.traceparent,
        proof,
        row.inclusion_number,
        row.inclusion_status,
        tuple(row.agreeing_nodes or ()),
    )
