"""Nonces in PostgreSQL. The account row's lock and the unique key make them safe; the epoch fences a paused holder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.core.addresses import Address
from services.core.errors import Reason, WalletError
from services.runtime.db import Database, constraint_name


@dataclass(frozen=True, slots=True)
class AccountKey:
    chain_id: str
    address: Address

    @property
    def columns(self) -> dict[str, object]:
        return {"chain_id": self.chain_id, "address": self.address}


@dataclass(frozen=True, slots=True)
class Reservation:
    """A built transaction under its nonce."""

    transfer_id: str
    nonce: int
    unsigned_tx: bytes
    terms_sha256: bytes
    gas_limit: int
    cost_wei: int
    max_fee_wei: int


class NonceSequence:
    """The nonces that one allocation may take, in order: those that were given back, then new ones."""

    def __init__(self, free: list[int], next_nonce: int) -> None:
        self._free = free
        self._next = next_nonce
        self.taken_free: list[int] = []

    @property
    def next_nonce(self) -> int:
        return self._next

    def peek(self) -> int:
        return self._free[0] if self._free else self._next

    def take(self) -> int:
        if self._free:
            nonce = self._free.pop(0)
            self.taken_free.append(nonce)
            return nonce
        nonce, self._next = self._next, self._next + 1
        return nonce


# Builds as many transfers as it can from the sequence; what it does not take stays free.
Allocate = Callable[[NonceSequence], list[Reservation]]


class Store:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, transfer_ids: list[str]) -> dict[str, Reservation | None]:
        """What is built under these ids; None for a transfer whose nonce was given back."""
        async with self._database.statement() as connection:
            rows = await connection.execute(
                text("""
                    SELECT transfer_id, nonce, unsigned_tx, terms_sha256, gas_limit, cost_wei, max_fee_wei
                    FROM txbuilder.reservations WHERE transfer_id = ANY (CAST(:ids AS text[]))
                """),
                {"ids": transfer_ids},
            )
            return {
                row.transfer_id: None
                if row.nonce is None
                else Reservation(
                    row.transfer_id,
                    int(row.nonce),
                    row.unsigned_tx,
                    row.terms_sha256,
                    row.gas_limit,
                    int(row.cost_wei),
                    int(row.max_fee_wei),
                )
                for row in rows
            }

    async def raise_epoch(self, account: AccountKey) -> int:
        """A new fencing token, for who holds the lease: whoever has an older one can write nothing more."""
        return await self._epoch(account, raised_by=1)

    async def read_epoch(self, account: AccountKey) -> int:
        """The fencing token that stands, for who holds no lease: of several, whoever commits first can write.

        If each raised it, each could be in time to stop the other, for ever.
        """
        return await self._epoch(account, raised_by=0)

    async def _epoch(self, account: AccountKey, *, raised_by: int) -> int:
        async with self._database.statement() as connection:
            epoch = await connection.execute(
                text("""
                    INSERT INTO txbuilder.accounts AS a (chain_id, address, epoch) VALUES (:chain_id, :address, 1)
                    ON CONFLICT (chain_id, address) DO UPDATE SET epoch = a.epoch + :raised_by
                    RETURNING epoch
                """),
                {**account.columns, "raised_by": raised_by},
            )
            return int(epoch.scalar_one())

    async def committed_wei(self, account: AccountKey, from_nonce: int) -> int:
        """What unmined reservations of the account may still cost, replacements included: those from `from_nonce` on.

        A superseding link counts beside the transfer that it supersedes, though one of them is mined: 21,000 gas more.
        """
        async with self._database.statement() as connection:
            total = await connection.execute(
                # Two sums, one an index.
                text("""
                    SELECT (
                        SELECT coalesce(sum(cost_wei), 0) FROM txbuilder.reservations
                        WHERE chain_id = :chain_id AND address = :address AND nonce >= :from_nonce
                            AND (supersedes IS NULL OR supersedes = '')
                    ) + (
                        SELECT coalesce(sum(cost_wei), 0) FROM txbuilder.reservations
                        WHERE chain_id = :chain_id AND address = :address AND nonce >= :from_nonce
                            AND supersedes IS NOT NULL AND supersedes <> ''
                    )
                """),
                {"chain_id": account.chain_id, "address": account.address, "from_nonce": Decimal(from_nonce)},
            )
            return int(total.scalar_one())

    async def reserve(
        self, account: AccountKey, epoch: int, mined_nonce: int, finalized_nonce: int, allocate: Allocate
    ) -> list[Reservation]:
        """Under the account row's lock: fence, retire what others mined, let `allocate` build, store, commit.

        `mined_nonce` seeds an account that was never used here; `finalized_nonce` retires upward only.

        Raises:
            WalletError: LEASE_LOST when a newer epoch exists; NONCE_CONFLICT when one of the transfers was built or
                voided meanwhile: look again.
        """
        async with conflicts_by_meaning(), self._database.begin() as connection:
            sequence = await _open_sequence(connection, account, mined_nonce, finalized_nonce, epoch)
            reservations = allocate(sequence)
            await _insert(connection, account, reservations)
            if sequence.taken_free:
                await connection.execute(
                    text("""
                        DELETE FROM txbuilder.free_nonces
                        WHERE chain_id = :chain_id AND address = :address AND nonce = ANY (CAST(:nonces AS numeric[]))
                    """),
                    {**account.columns, "nonces": [Decimal(nonce) for nonce in sequence.taken_free]},
                )
            await connection.execute(
                text("""
                    UPDATE txbuilder.accounts SET next_nonce = :next_nonce, epoch = epoch + 1
                    WHERE chain_id = :chain_id AND address = :address
                """),
                {**account.columns, "next_nonce": Decimal(sequence.next_nonce)},
            )
            return reservations

    async def next_nonce(self, account: AccountKey, mined_nonce: int, finalized_nonce: int) -> int:
        """The nonce that the next reservation would take; reserves nothing."""
        async with self._database.begin() as connection:
            return (await _open_sequence(connection, account, mined_nonce, finalized_nonce, None)).peek()

    async def release(self, transfer_id: str) -> None:
        """Give the transfer's nonce back, once. A transfer without one gets a tombstone: a late build is refused.

        Only for transfers that the signer has voided. A nonce that a superseding link spends, or shares with the
        transfer that it supersedes, is nobody's to take.
        """
        async with self._database.begin() as connection:
            await connection.execute(
                text("""
                    INSERT INTO txbuilder.reservations (transfer_id) VALUES (:transfer_id)
                    ON CONFLICT (transfer_id) DO NOTHING
                """),
                {"transfer_id": transfer_id},
            )
            # The primary key serialises this with a build of the same transfer: its row is there, or ours is. The row's
            # lock serialises it with superseding: what comes after sees the superseding link, or none comes.
            await connection.execute(
                text("SELECT FROM txbuilder.reservations WHERE transfer_id = :transfer_id FOR UPDATE"),
                {"transfer_id": transfer_id},
            )
            await connection.execute(
                text("""
                    WITH held AS (
                        SELECT transfer_id, chain_id, address, nonce FROM txbuilder.reservations
                        WHERE transfer_id = :transfer_id AND nonce IS NOT NULL
                    ), freed AS (
                        INSERT INTO txbuilder.free_nonces (chain_id, address, nonce)
                        SELECT chain_id, address, nonce FROM held h WHERE NOT EXISTS (
                            SELECT FROM txbuilder.reservations o
                            WHERE o.chain_id = h.chain_id AND o.address = h.address AND o.nonce = h.nonce
                                AND o.supersedes IS NOT NULL AND o.transfer_id <> h.transfer_id
                        ) AND NOT EXISTS (
                            SELECT FROM txbuilder.reservations o
                            WHERE o.chain_id = h.chain_id AND o.address = h.address AND o.nonce = h.nonce
                                AND (o.supersedes IS NULL OR o.supersedes = '') AND o.transfer_id <> h.transfer_id
                        )
                    )
                    UPDATE txbuilder.reservations r SET nonce = NULL FROM held h WHERE r.transfer_id = h.transfer_id
                """),
                {"transfer_id": transfer_id},
            )


@asynccontextmanager
async def conflicts_by_meaning() -> AsyncIterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise WalletError(
            Reason.NONCE_CONFLICT,
            "the transfer or its nonce was taken meanwhile",
            constraint=str(constraint_name(error)),
        ) from error


async def _open_sequence(
    connection: AsyncConnection, account: AccountKey, mined_nonce: int, finalized_nonce: int, epoch: int | None
) -> NonceSequence:
    row = (
        await connection.execute(
            text("""
                SELECT epoch, next_nonce FROM txbuilder.accounts
                WHERE chain_id = :chain_id AND address = :address FOR UPDATE
            """),
            account.columns,
        )
    ).one_or_none()
    if epoch is not None and (row is None or row.epoch != epoch):
        raise WalletError(Reason.LEASE_LOST, "a newer holder of the nonce lock has come", field="epoch")
    stored = None if row is None or row.next_nonce is None else int(row.next_nonce)
    free = await connection.execute(
        text("""
            SELECT nonce FROM txbuilder.free_nonces
            WHERE chain_id = :chain_id AND address = :address AND nonce >= :finalized ORDER BY nonce
        """),
        {**account.columns, "finalized": Decimal(finalized_nonce)},
    )
    next_nonce = mined_nonce if stored is None else max(stored, finalized_nonce)
    return NonceSequence([int(row.nonce) for row in free], next_nonce)


async def _insert(connection: AsyncConnection, account: AccountKey, reservations: list[Reservation]) -> None:
    if not reservations:
        return
    await connection.execute(
        text("""
            INSERT INTO txbuilder.reservations
                (transfer_id, chain_id, address, nonce, unsigned_tx, terms_sha256, gas_limit, cost_wei, max_fee_wei)
            SELECT r.transfer_id, :chain_id, :address, r.nonce, r.unsigned_tx, r.sha, r.gas_limit, r.cost, r.max_fee
            FROM unnest(CAST(:ids AS text[]), CAST(:nonces AS numeric[]), CAST(:txs AS bytea[]), CAST(:shas AS bytea[]),
                        CAST(:gas AS bigint[]), CAST(:costs AS numeric[]), CAST(:max_fees AS numeric[]))
                 AS r (transfer_id, nonce, unsigned_tx, sha, gas_limit, cost, max_fee)
        """),
        {
            **account.columns,
            "ids": [reservation.transfer_id for reservation in reservations],
            "nonces": [Decimal(reservation.nonce) for reservation in reservations],
            "txs": [reservation.unsigned_tx for reservation in reservations],
            "shas": [reservation.terms_sha256 for reservation in reservations],
            "gas": [reservation.gas_limit for reservation in reservations],
            "costs": [Decimal(reservation.cost_wei) for reservation in reservations],
            "max_fees": [Decimal(reservation.max_fee_wei) for reservation in reservations],
        },
    )
