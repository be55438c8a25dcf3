"""Watched blocks, the proofs found in them and the inclusion entries that are due: rows that the leader of a chain
writes, one commit a method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from services.broadcaster.inclusion import Inclusion
from services.broadcaster.leader_transactions import EVENT, SHOWN, LeaderTransactions, lock_events
from services.broadcaster.outbox import NewOutboxRow, Outbox, OutboxRow
from services.broadcaster.submission import State
from services.broadcaster.versions import put_mined, put_newest

_KEPT_PROOF_BYTES = 32 * 1024 * 1024

# What is true of a block, and who says so; {block} is its number, {nodes} who agreed that it is there.
_STATUS = "CASE WHEN {block} <= :finalized THEN 'finalized' WHEN {block} <= :safe THEN 'safe' ELSE 'included' END"
_NODES = (
    "CASE WHEN {block} <= :finalized THEN CAST(:finalized_nodes AS text[]) "
    "WHEN {block} <= :safe THEN CAST(:safe_nodes AS text[]) ELSE {nodes} END"
)
_DECIDED = "s.transfer_id, s.tx_hash, s.traceparent, s.inclusion_number, s.inclusion_status, s.agreeing_nodes"


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


@dataclass(frozen=True, slots=True)
class Included:
    """A submission that is in a block, to be revoked with it. `revocations`: how many there were before."""

    transfer_id: str
    tx_hash: bytes
    traceparent: str
    state: State
    block_number: int
    block_hash: bytes
    revocations: int


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


class InclusionStore:
    def __init__(self, transactions: LeaderTransactions, outbox: Outbox) -> None:
        self._transactions = transactions
        self._outbox = outbox
        self._chain_id = transactions.chain_id
        self._proofs = _Proofs()

    async def blocks(self) -> tuple[dict[int, bytes], int]:
        """The watched blocks that may still change, hash by number; and the highest that was final, -1 if none was."""
        async with self._transactions.statement() as connection:
            rows = await connection.execute(
                text("SELECT number, hash FROM broadcaster.blocks WHERE chain_id = :chain_id"),
                {"chain_id": self._chain_id},
            )
            finalized = await connection.execute(
                text("SELECT finalized_number FROM broadcaster.chains WHERE chain_id = :chain_id"),
                {"chain_id": self._chain_id},
            )
            number: int | None = finalized.scalar_one_or_none()
            return {row.number: row.hash for row in rows}, -1 if number is None else number

    async def unproven(self, tx_hashes: Sequence[bytes]) -> frozenset[bytes]:
        """Those of `tx_hashes` that were submitted here, and whose transfers are in no block that was watched."""
        async with self._transactions.statement() as connection:
            rows = await connection.execute(
                text("""
                    SELECT tx_hash FROM broadcaster.submissions
                    WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[])) AND chain_id = :chain_id
                        AND block_number IS NULL AND is_open
                    UNION ALL
                    SELECT v.tx_hash FROM broadcaster.versions v
                    JOIN broadcaster.submissions s ON s.id = v.submission_id
                    WHERE v.tx_hash = ANY (CAST(:tx_hashes AS bytea[])) AND s.chain_id = :chain_id
                        AND s.block_number IS NULL AND s.is_open
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
        async with self._transactions.begin() as connection:
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
                        WITH passed AS (
                            DELETE FROM broadcaster.blocks WHERE chain_id = :chain_id AND number < :finalized
                        )
                        UPDATE broadcaster.chains SET finalized_number = :finalized
                        WHERE chain_id = :chain_id AND :finalized > coalesce(finalized_number, -1)
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
        stored = await self._store_proofs_of_rows(connection, inclusions, heights)
        found = {row.tx_hash for row in stored}
        if rest := [one for one in inclusions if one[0].tx_hash not in found]:
            # Mined though they were replaced, perhaps a moment ago: they count from here on.
            await put_mined(connection, [one.tx_hash for one, _ in rest])
            stored += await self._store_proofs_of_rows(connection, rest, heights)
        return stored

    async def _store_proofs_of_rows(
        self,
        connection: AsyncConnection,
        inclusions: Sequence[tuple[Inclusion, tuple[str, ...]]],
        heights: dict[str, Any],
    ) -> list[Row[Any]]:
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
                WHERE s.tx_hash = p.tx_hash AND s.block_number IS NULL AND s.is_open
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
        return list(stored)

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
            async with self._transactions.statement() as connection:
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
        async with self._transactions.statement() as connection:
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
        async with self._transactions.begin() as connection:
            await connection.execute(
                text("""
                    UPDATE broadcaster.submissions SET inclusion_pending = false
                    WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[])) AND inclusion_pending
                """),
                {"tx_hashes": list(refused)},
            )

    async def mark_late(self, tx_hashes: Sequence[bytes], at: datetime) -> int:
        """The blocks of these are too old for the log; how many were not marked yet."""
        async with self._transactions.begin() as connection:
            await lock_events(connection)
            marked = await connection.execute(
                text(f"""
                    WITH marked AS (
                        UPDATE broadcaster.submissions SET stall = 'CHAIN_CLOCK'
                        WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[])) AND state = 'SUBMITTED'
                            AND block_number IS NOT NULL AND stall IS DISTINCT FROM 'CHAIN_CLOCK'
                        RETURNING *
                    )
                    INSERT INTO broadcaster.events ({EVENT}) SELECT {SHOWN}, :at FROM marked ORDER BY id
                """),  # noqa: S608
                {"tx_hashes": list(tx_hashes), "at": at},
            )
            return marked.rowcount

    async def settle_inclusions(self, entered: Sequence[bytes], at: datetime) -> None:
        """The log has the pending inclusion of these transactions: show the new state. A final one needs no proof."""
        async with self._transactions.begin() as connection:
            await lock_events(connection)
            await connection.execute(
                text(f"""
                    WITH settled AS (
                        UPDATE broadcaster.submissions
                        SET inclusion_pending = false, state = upper(inclusion_status), stall = NULL,
                            proof = CASE inclusion_status WHEN 'finalized' THEN NULL ELSE proof END
                        WHERE tx_hash = ANY (CAST(:tx_hashes AS bytea[])) AND inclusion_pending
                        RETURNING *
                    )
                    INSERT INTO broadcaster.events ({EVENT}) SELECT {SHOWN}, :at FROM settled ORDER BY id
                """),  # noqa: S608
                {"tx_hashes": list(entered), "at": at},
            )

    async def included_above(self, number: int) -> list[Included]:
        """What is shown to be in a block above `number`."""
        async with self._transactions.statement() as connection:
            rows = await connection.execute(
                text("""
                    SELECT transfer_id, tx_hash, traceparent, state, block_number, block_hash, revocation_number
                    FROM broadcaster.submissions
                    WHERE chain_id = :chain_id AND is_open AND NOT is_queued AND block_number > :number
                        AND state IN ('INCLUDED', 'SAFE')
                    ORDER BY id
                """),
                {"chain_id": self._chain_id, "number": number},
            )
            return [
                Included(
                    row.transfer_id,
                    row.tx_hash,
                    row.traceparent,
                    State(row.state),
                    row.block_number,
                    row.block_hash,
                    row.revocation_number,
                )
                for row in rows
            ]

    async def revoke(self, number: int, revocations: Sequence[NewOutboxRow], at: datetime) -> list[OutboxRow]:
        """Forget the blocks above `number`, and send what they held again, once the revocations are committed."""
        async with self._transactions.begin() as connection:
            await connection.execute(
                text("DELETE FROM broadcaster.blocks WHERE chain_id = :chain_id AND number > :number"),
                {"chain_id": self._chain_id, "number": number},
            )
            revoked = await connection.execute(
                text("""
                    UPDATE broadcaster.submissions
                    SET state = CASE WHEN state IN ('INCLUDED', 'SAFE') THEN 'SUBMITTED' ELSE state END,
                        revocation_number = revocation_number
                            + CASE WHEN state IN ('INCLUDED', 'SAFE') THEN 1 ELSE 0 END,
                        block_number = NULL, block_hash = NULL, receipt_status = NULL, fee_paid_wei = NULL,
                        proof = NULL, agreeing_nodes = NULL, inclusion_status = NULL,
                        stall = nullif(stall, 'CHAIN_CLOCK'),
                        answered_nodes = '{}', silent_nodes = '{}', next_send_at = clock_timestamp(),
                        submitted_at = clock_timestamp(), earlier_attempts = attempts
                    WHERE id IN (
                        SELECT id FROM broadcaster.submissions
                        WHERE chain_id = :chain_id AND is_open AND NOT is_queued AND block_number > :number
                        UNION ALL
                        SELECT id FROM broadcaster.submissions
                        WHERE chain_id = :chain_id AND is_queued AND block_number > :number
                    ) AND NOT inclusion_pending
                    RETURNING id, newest_tx_hash
                """),
                {"chain_id": self._chain_id, "number": number},
            )
            if replaced := [row.id for row in revoked if row.newest_tx_hash is not None]:
                await put_newest(connection, replaced)
            rows = await self._outbox.add(connection, revocations)
            await lock_events(connection)
            await connection.execute(
                text(f"""
                    INSERT INTO broadcaster.events ({EVENT}) SELECT {SHOWN}, :at FROM broadcaster.submissions
                    WHERE transfer_id = ANY (CAST(:transfer_ids AS text[])) ORDER BY id
                """),  # noqa: S608
                {"transfer_ids": [row.entry.link_id for row in revocations], "at": at},
            )
        self._proofs.clear()
        return rows


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
