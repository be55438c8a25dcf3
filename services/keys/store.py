"""What `keys` remembers, in PostgreSQL: sealed seeds, accounts, transport keys, wrapped leaves, entries to append."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    SmallInteger,
    Table,
    Text,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.core.paths import AccountPath, Algorithm
from services.runtime.db import Database


@dataclass(frozen=True)
class WalletRow:
    wallet_id: str
    name: str
    strength_bits: int
    recovery_recipient: bytes
    encrypted_seed: bytes
    encrypted_recovery: bytes
    created_at: datetime


@dataclass(frozen=True)
class AccountRow:
    account_id: str
    wallet_id: str
    chain_id: str  # CAIP-2; empty for Ed25519
    path: AccountPath
    address: bytes  # 20 bytes; empty for Ed25519
    public_key: bytes
    key_id: str
    key_version: int
    created_at: datetime


@dataclass(frozen=True)
class TransportKeyRow:
    fingerprint: bytes
    public_key_der: bytes
    token_label: str
    token_serial: str
    created_at: datetime


@dataclass(frozen=True)
class WrappedLeafRow:
    key_id: str
    key_version: int
    fingerprint: bytes
    wrapped_aes_key: bytes
    wrapped_private_key: bytes


@dataclass(frozen=True)
class KeyEntry:
    """An entry of kind `key`, exactly as it is appended."""

    link_id: str
    entry_id: str
    traceparent: str
    body: bytes


_metadata = MetaData(schema="keys")

_wallets = Table(
    "wallets",
    _metadata,
    Column("wallet_id", Text, primary_key=True),
    Column("name", Text),
    Column("strength_bits", SmallInteger),
    Column("recovery_recipient", LargeBinary),
    Column("encrypted_seed", LargeBinary),
    Column("encrypted_recovery", LargeBinary),
    Column("created_at", DateTime(timezone=True)),
)

_accounts = Table(
    "accounts",
    _metadata,
    Column("account_id", Text, primary_key=True),
    Column("wallet_id", Text),
    Column("chain_id", Text),
    Column("algorithm", Text),
    Column("account", BigInteger),
    Column("change", BigInteger),
    Column("index", BigInteger),
    Column("address", LargeBinary),
    Column("public_key", LargeBinary),
    Column("key_id", Text),
    Column("key_version", Integer),
    Column("created_at", DateTime(timezone=True)),
)

_transport_keys = Table(
    "transport_keys",
    _metadata,
    Column("fingerprint", LargeBinary, primary_key=True),
    Column("public_key_der", LargeBinary),
    Column("token_label", Text),
    Column("token_serial", Text),
    Column("created_at", DateTime(timezone=True)),
)

_wrapped_leaves = Table(
    "wrapped_leaves",
    _metadata,
    Column("key_id", Text, primary_key=True),
    Column("key_version", Integer, primary_key=True),
    Column("fingerprint", LargeBinary, primary_key=True),
    Column("wrapped_aes_key", LargeBinary),
    Column("wrapped_private_key", LargeBinary),
)

_key_entries = Table(
    "key_entries",
    _metadata,
    Column("link_id", Text, primary_key=True),
    Column("entry_id", Text, primary_key=True),
    Column("traceparent", Text),
    Column("body", LargeBinary),
    Column("appended_at", DateTime(timezone=True)),
)


class Store:
    """Inserts answer whether the row is new: a false one left the database as it was, another writer came first."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find_wallet(self, wallet_id: str) -> WalletRow | None:
        row = await self._find(_wallets, _wallets.c.wallet_id == wallet_id)
        return None if row is None else WalletRow(**row)

    async def insert_wallet(self, wallet: WalletRow, entry: KeyEntry) -> bool:
        return await self._insert_with_entry(_wallets, asdict(wallet), entry)

    async def find_account(self, account_id: str) -> AccountRow | None:
        return await self._account(_accounts.c.account_id == account_id)

    async def find_account_by_address(self, chain_id: str, address: bytes) -> AccountRow | None:
        return await self._account((_accounts.c.chain_id == chain_id) & (_accounts.c.address == address))

    async def find_account_of_key(self, key_id: str, key_version: int) -> AccountRow | None:
        """Any account of the key: on every chain the key, its path and its address are the same."""
        return await self._account((_accounts.c.key_id == key_id) & (_accounts.c.key_version == key_version))

    async def insert_account(self, account: AccountRow, entry: KeyEntry) -> bool:
        values = {name: value for name, value in vars(account).items() if name != "path"}
        path = account.path
        place = {
            "algorithm": path.algorithm.value,
            "account": path.account,
            "change": path.change,
            "index": path.index,
        }
        return await self._insert_with_entry(_accounts, values | place, entry)

    async def find_transport_key(self, fingerprint: bytes) -> TransportKeyRow | None:
        row = await self._find(_transport_keys, _transport_keys.c.fingerprint == fingerprint)
        return None if row is None else TransportKeyRow(**row)

    async def insert_transport_key(self, key: TransportKeyRow, entry: KeyEntry) -> bool:
        return await self._insert_with_entry(_transport_keys, asdict(key), entry)

    async def find_wrapped_leaf(self, key_id: str, key_version: int, fingerprint: bytes) -> WrappedLeafRow | None:
        columns = _wrapped_leaves.c
        row = await self._find(
            _wrapped_leaves,
            (columns.key_id == key_id) & (columns.key_version == key_version) & (columns.fingerprint == fingerprint),
        )
        return None if row is None else WrappedLeafRow(**row)

    async def insert_wrapped_leaf(self, leaf: WrappedLeafRow) -> bool:
        async with self._database.begin() as connection:
            return await _insert(connection, _wrapped_leaves, asdict(leaf))

    async def pending_entries(self, link_id: str | None = None, limit: int = 100) -> list[KeyEntry]:
        """Entries that are not known to be in the log: those of one link, or of all."""
        columns = _key_entries.c
        query = select(columns.link_id, columns.entry_id, columns.traceparent, columns.body).where(
            columns.appended_at.is_(None)
        )
        if link_id is not None:
            query = query.where(columns.link_id == link_id)
        async with self._database.statement() as connection:
            rows = await connection.execute(query.order_by(columns.link_id, columns.entry_id).limit(limit))
            return [KeyEntry(**row) for row in rows.mappings()]

    async def mark_appended(self, entry: KeyEntry) -> None:
        columns = _key_entries.c
        async with self._database.begin() as connection:
            await connection.execute(
                update(_key_entries)
                .where((columns.link_id == entry.link_id) & (columns.entry_id == entry.entry_id))
                .values(appended_at=func.now())
            )

    async def _account(self, condition: ColumnElement[bool]) -> AccountRow | None:
        row = await self._find(_accounts, condition)
        if row is None:
            return None
        values = dict(row)
        path = AccountPath(
            Algorithm(values.pop("algorithm")), values.pop("account"), values.pop("change"), values.pop("index")
        )
        return AccountRow(path=path, **values)

    async def _find(self, table: Table, condition: ColumnElement[bool]) -> Mapping[str, Any] | None:
        async with self._database.statement() as connection:
            row: Row[Any] | None = (await connection.execute(select(table).where(condition).limit(1))).first()
            return None if row is None else {str(name): value for name, value in row._mapping.items()}

    async def _insert_with_entry(self, table: Table, values: Mapping[str, Any], entry: KeyEntry) -> bool:
        """The row and the entry that tells of it, or neither."""
        async with self._database.begin() as connection:
            if not await _insert(connection, table, values):
                return False
            await connection.execute(insert(_key_entries).values(**asdict(entry)))
            return True


async def _insert(connection: AsyncConnection, table: Table, values: Mapping[str, Any]) -> bool:
    result = await connection.execute(insert(table).values(**values).on_conflict_do_nothing())
    return result.rowcount == 1
