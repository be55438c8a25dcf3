"""Replacements and superseding links in PostgreSQL. Rows are written once; unique keys decide who writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.core.addresses import Address
from services.core.errors import Reason, WalletError, refuse
from services.runtime.db import Database
from services.txbuilder.store import AccountKey, Reservation, conflicts_by_meaning


@dataclass(frozen=True, slots=True)
class Version:
    """One of the transactions of a transfer: 0 the first, then its replacements."""

    number: int
    unsigned_tx: bytes
    max_fee_wei: int


@dataclass(frozen=True, slots=True)
class Replaceable:
    """A transfer or superseding link with everything that was built for it."""

    account: AccountKey
    nonce: int
    gas_limit: int
    cost_wei: int
    versions: tuple[Version, ...]


# The unsigned transaction of a superseding link, given every transaction that is known for its nonce.
Compose = Callable[[Sequence[bytes]], Reservation]


class ReplacementStore:
    """Every method raises WalletError DATABASE_UNAVAILABLE; whether a write that failed so took effect is unknown."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, transfer_id: str) -> Replaceable:
        """Raises WalletError NOT_FOUND, or LINK_VOIDED when the nonce was given back."""
        async with self._database.begin() as connection:
            return await _locked(connection, transfer_id)

    async def replace(self, transfer_id: str, version: Version, cost_wei: int) -> Version:
        """Store a replacement unless one of its number is there; what is stored now.

        Raises:
            WalletError: NOT_FOUND, LINK_VOIDED; SUPERSEDED once a superseding link has the nonce: it would outbid it.
        """
        async with conflicts_by_meaning(), self._database.begin() as connection:
            # Under the row's lock, so that a superseding link knows every replacement, or no replacement comes.
            found = await _locked(connection, transfer_id)
            if version.number < len(found.versions):
                return found.versions[version.number]
            await _refuse_superseded(connection, found, transfer_id)
            await connection.execute(
                text("""
                    INSERT INTO txbuilder.replacements (transfer_id, replacement, unsigned_tx, max_fee_wei)
                    VALUES (:transfer_id, :replacement, :unsigned_tx, :max_fee_wei)
                """),
                {
                    "transfer_id": transfer_id,
                    "replacement": version.number,
                    "unsigned_tx": version.unsigned_tx,
                    "max_fee_wei": Decimal(version.max_fee_wei),
                },
            )
            # One of the versions is mined; what is committed is the dearest.
            await connection.execute(
                text("""
                    UPDATE txbuilder.reservations SET cost_wei = greatest(cost_wei, :cost_wei)
                    WHERE transfer_id = :transfer_id
                """),
                {"transfer_id": transfer_id, "cost_wei": Decimal(cost_wei)},
            )
            return version

    async def supersede(self, account: AccountKey, nonce: int, supersedes: str, compose: Compose) -> Reservation:
        """Store the superseding link that `compose` builds, and take the nonce: from the transfer `supersedes`, which
        must hold it, or, where that is empty, from those that nobody holds.

        Raises:
            WalletError: NONCE_REGISTERED when the nonce is another's; INVALID_REQUEST when it was never given out;
                NONCE_CONFLICT when it was taken meanwhile: look again.
        """
        async with conflicts_by_meaning(), self._database.begin() as connection:
            if supersedes:
                known = await _known_of(connection, account, nonce, supersedes)
            else:
                known = []
                await _take_unheld(connection, account, nonce)
            await _refuse_taken(connection, account, nonce)
            reservation = compose(known)
            await connection.execute(
                text("""
                    INSERT INTO txbuilder.reservations (transfer_id, chain_id, address, nonce, unsigned_tx,
                        terms_sha256, gas_limit, cost_wei, max_fee_wei, supersedes)
                    VALUES (:transfer_id, :chain_id, :address, :nonce, :unsigned_tx,
                        :terms_sha256, :gas_limit, :cost_wei, :max_fee_wei, :supersedes)
                """),
                {
                    **account.columns,
                    "transfer_id": reservation.transfer_id,
                    "nonce": Decimal(nonce),
                    "unsigned_tx": reservation.unsigned_tx,
                    "terms_sha256": reservation.terms_sha256,
                    "gas_limit": reservation.gas_limit,
                    "cost_wei": Decimal(reservation.cost_wei),
                    "max_fee_wei": Decimal(reservation.max_fee_wei),
                    "supersedes": supersedes,
                },
            )
            return reservation


async def _locked(connection: AsyncConnection, transfer_id: str) -> Replaceable:
    row = (
        await connection.execute(
            text("""
                SELECT chain_id, address, nonce, unsigned_tx, gas_limit, cost_wei, max_fee_wei
                FROM txbuilder.reservations WHERE transfer_id = :transfer_id FOR UPDATE
            """),
            {"transfer_id": transfer_id},
        )
    ).one_or_none()
    if row is None:
        raise WalletError(Reason.NOT_FOUND, "no such transfer was built", field="transfer_id")
    if row.nonce is None:
        raise WalletError(Reason.LINK_VOIDED, "the transfer was voided and its nonce given back", field="transfer_id")
    replacements = await connection.execute(
        text("""
            SELECT replacement, unsigned_tx, max_fee_wei FROM txbuilder.replacements
            WHERE transfer_id = :transfer_id ORDER BY replacement
        """),
        {"transfer_id": transfer_id},
    )
    return Replaceable(
        AccountKey(row.chain_id, Address(row.address)),
        int(row.nonce),
        row.gas_limit,
        int(row.cost_wei),
        (
            Version(0, row.unsigned_tx, int(row.max_fee_wei)),
            *(Version(one.replacement, one.unsigned_tx, int(one.max_fee_wei)) for one in replacements),
        ),
    )


async def _known_of(connection: AsyncConnection, account: AccountKey, nonce: int, transfer_id: str) -> list[bytes]:
    """The transactions of the transfer, whose row is locked. Raises WalletError when the nonce is not its own."""
    try:
        found = await _locked(connection, transfer_id)
    except WalletError as error:
        raise WalletError(error.reason, error.message, field="supersedes") from None
    if (found.account, found.nonce) != (account, nonce):
        refuse("supersedes", "is the transfer that holds the nonce")
    return [version.unsigned_tx for version in found.versions]


async def _take_unheld(connection: AsyncConnection, account: AccountKey, nonce: int) -> None:
    """A nonce that was given back, or one that was given out and that nobody holds: passed over by a chain that took
    the transaction back, which had it."""
    # Locked, so that allocations queue before it instead of deadlocking; the unique keys are what makes it safe.
    row = (
        await connection.execute(
            text("""
                SELECT next_nonce FROM txbuilder.accounts
                WHERE chain_id = :chain_id AND address = :address FOR UPDATE
            """),
            account.columns,
        )
    ).one_or_none()
    if row is None or row.next_nonce is None or nonce >= row.next_nonce:
        refuse("nonce", "is below the account's next")
    await connection.execute(
        text("""
            DELETE FROM txbuilder.free_nonces
            WHERE chain_id = :chain_id AND address = :address AND nonce = :nonce
        """),
        {**account.columns, "nonce": Decimal(nonce)},
    )
    holder = await connection.execute(
        text("""
            SELECT transfer_id FROM txbuilder.reservations
            WHERE chain_id = :chain_id AND address = :address AND nonce = :nonce
                AND (supersedes IS NULL OR supersedes = '')
        """),
        {**account.columns, "nonce": Decimal(nonce)},
    )
    if (held_by := holder.scalar_one_or_none()) is not None:
        raise WalletError(Reason.NONCE_REGISTERED, "a transfer holds the nonce", field="nonce", transfer_id=held_by)


async def _refuse_taken(connection: AsyncConnection, account: AccountKey, nonce: int) -> None:
    if (taken_by := await _superseding(connection, account, nonce)) is not None:
        raise WalletError(
            Reason.NONCE_REGISTERED, "a superseding link has the nonce", field="nonce", transfer_id=taken_by
        )


async def _refuse_superseded(connection: AsyncConnection, found: Replaceable, transfer_id: str) -> None:
    taken_by = await _superseding(connection, found.account, found.nonce)
    if taken_by is not None and taken_by != transfer_id:
        raise WalletError(Reason.SUPERSEDED, Reason.SUPERSEDED.meaning, field="transfer_id")


async def _superseding(connection: AsyncConnection, account: AccountKey, nonce: int) -> str | None:
    found = await connection.execute(
        text("""
            SELECT transfer_id FROM txbuilder.reservations
            WHERE chain_id = :chain_id AND address = :address AND nonce = :nonce AND supersedes IS NOT NULL
        """),
        {**account.columns, "nonce": Decimal(nonce)},
    )
    held_by: str | None = found.scalar_one_or_none()
    return held_by
