"""The outbox: entries of ours that are committed, and appended to the log or about to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.broadcaster.leader_transactions import LeaderTransactions
from services.runtime.evidence_log import Entry


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


class Outbox:
    def __init__(self, transactions: LeaderTransactions) -> None:
        self._transactions = transactions
        # Requests that the log has; they stay until their responses are committed, to be found after a crash.
        self._requested: set[int] = set()

    async def rows(self, transfer_ids: Sequence[str] | None = None) -> list[OutboxRow]:
        """What may not be in the log yet, oldest first: of some transfers, or of all."""
        async with self._transactions.statement() as connection:
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
                    "chain_id": self._transactions.chain_id,
                    "appended": [*self._transactions.appended, *self._requested],
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

    def note_appended(self, rows: Iterable[OutboxRow]) -> None:
        """The log has these rows, or refuses them for good: the next transaction deletes them, requests excepted."""
        for row in rows:
            (self._requested if row.entry.kind == "request" else self._transactions.appended).add(row.seq)

    def forget(self, seqs: Iterable[int]) -> None:
        """Requests whose rows are deleted."""
        self._requested.difference_update(seqs)

    async def add(self, connection: AsyncConnection, rows: Sequence[NewOutboxRow]) -> list[OutboxRow]:
        """Within the caller's transaction. Repeatable with the same rows."""
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
                "chain_id": self._transactions.chain_id,
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

    async def holds(self, connection: AsyncConnection, rows: Sequence[NewOutboxRow]) -> bool:
        """Whether the first of `rows` is there already: a commit is all of them, or none."""
        if not rows:
            return False
        entry = rows[0].entry
        found = await connection.execute(
            text("SELECT 1 FROM broadcaster.outbox WHERE transfer_id = :transfer_id AND entry_id = :entry_id"),
            {"transfer_id": entry.link_id, "entry_id": entry.entry_id},
        )
        return found.one_or_none() is not None
