"""A builder on a real chain, PostgreSQL and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from coincurve import PrivateKey
from redis.asyncio import Redis

from services.core.account_ids import AccountIds
from services.core.addresses import Address
from services.core.digests import Signature, low_s
from services.core.errors import WalletError
from services.core.transactions import assemble_raw, signing_digest
from services.runtime.db import Database
from services.runtime.lock import LeaseLock
from services.runtime.node_settings import NodeAddress
from services.runtime.nodes import Nodes
from services.runtime.settings import DatabaseSettings
from services.txbuilder.building import Builder
from services.txbuilder.chain import AccountState, ChainReader
from services.txbuilder.fees import Fees
from services.txbuilder.gap_store import GapStore
from services.txbuilder.gaps import GapSearch
from services.txbuilder.replacement_store import ReplacementStore
from services.txbuilder.replacing import Replacer
from services.txbuilder.store import AccountKey, Reservation, Store
from services.txbuilder.transfers import Draft, Options, Terms

# anvil's first two development accounts, each with 10,000 ether, and the published key of the first.
RICH = Address(bytes.fromhex("f39fd6e51aad88f6f4ce6ab8827279cfffb92266"))
OTHER = Address(bytes.fromhex("70997970c51812dc3a010c7d01b50e0d17dc79c8"))
_RICH_KEY = PrivateKey(bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"))
POOR = Address(b"\x11" * 20)
CHAIN = "eip155:31337"
ACCOUNT = AccountKey(CHAIN, RICH)
FEE_CAP_WEI = 10**12


@dataclass
class Bench:
    builder: Builder
    replacer: Replacer
    gaps: GapSearch
    store: Store
    replacements: ReplacementStore
    nodes: Nodes
    database: Database
    redis: Redis

    async def rpc(self, method: str, *params: Any) -> Any:
        return await self.nodes.chain(CHAIN).call(method, params)

    async def send(self, unsigned_tx: bytes) -> str:
        """Sign for the first account and send; the transaction hash."""
        return str(await self.rpc("eth_sendRawTransaction", "0x" + signed(unsigned_tx).hex()))

    async def send_foreign(self, count: int = 1) -> None:
        """Transactions of the first account that nobody here knows."""
        for _ in range(count):
            await self.rpc("eth_sendTransaction", {"from": "0x" + RICH.hex(), "to": "0x" + OTHER.hex(), "value": "0x1"})
        await self.rpc("evm_mine")

    async def mined_nonce(self) -> int:
        """Once all that can be mined is."""
        await self.rpc("evm_mine")
        return int(await self.rpc("eth_getTransactionCount", "0x" + RICH.hex(), "latest"), 16)

    def builder_with(self, lock: LeaseLock, chain: ChainReader | None = None) -> Builder:
        return Builder(
            self.store,
            chain or ChainReader(self.nodes, 10**9),
            lock,
            AccountIds(b"k" * 32),
            gas_margin_percent=20,
            fee_cap_wei=FEE_CAP_WEI,
        )


class Gate(ChainReader):
    """A chain whose answer about an account comes once the gate is opened: its caller has the epoch, and waits."""

    def __init__(self, nodes: Nodes) -> None:
        super().__init__(nodes, 10**9)
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def account_state(self, chain_id: str, address: Address) -> AccountState:
        state = await super().account_state(chain_id, address)
        self.reached.set()
        await self.opened.wait()
        return state


@asynccontextmanager
async def running_bench(database_settings: DatabaseSettings, redis_url: str, chain_url: str) -> AsyncIterator[Bench]:
    nodes = Nodes([NodeAddress(name, chain_url, CHAIN) for name in ("node-a", "node-b", "node-c")], 2)
    database = Database(database_settings)
    client = Redis.from_url(redis_url)
    store, replacements, chain = Store(database), ReplacementStore(database), ChainReader(nodes, 10**9)
    lock = LeaseLock(client, lease_s=5, wait_s=1)
    builder = Builder(store, chain, lock, AccountIds(b"k" * 32), gas_margin_percent=20, fee_cap_wei=FEE_CAP_WEI)
    replacer = Replacer(store, replacements, chain, fee_cap_wei=FEE_CAP_WEI)
    gaps = GapSearch(GapStore(database), chain)
    yield Bench(builder, replacer, gaps, store, replacements, nodes, database, client)
    await client.aclose()
    await nodes.close()
    await database.close()


def draft(transfer_id: str, *, sender: Address = RICH, to: Address | None = OTHER, **other: Any) -> Draft:
    options = Options(other.pop("kind", 2), Fees(**other.pop("fees", {})))
    return Draft(transfer_id, Terms(31337, sender, to, other.pop("value_wei", 1), other.pop("data", b"")), options)


def built(outcomes: list[Reservation | WalletError]) -> list[Reservation]:
    assert not [outcome for outcome in outcomes if isinstance(outcome, WalletError)]
    return [outcome for outcome in outcomes if isinstance(outcome, Reservation)]


def signed(unsigned_tx: bytes) -> bytes:
    recoverable = _RICH_KEY.sign_recoverable(signing_digest(unsigned_tx), hasher=None)
    r, s, y_parity = int.from_bytes(recoverable[:32], "big"), int.from_bytes(recoverable[32:64], "big"), recoverable[64]
    assert (r, s) == low_s(r, s)
    return assemble_raw(unsigned_tx, Signature(r, s, y_parity))
