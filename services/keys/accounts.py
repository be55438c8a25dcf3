"""Accounts: a place in a wallet's tree on a chain, with its key id, public key and address."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from services.core.addresses import address_of_public_key
from services.core.amounts import parse_chain_id
from services.core.canonical import to_hex
from services.core.errors import Reason, WalletError, refuse
from services.core.paths import AccountPath, Algorithm
from services.keys.ceremonies import Ceremonies, SealedSeed
from services.keys.journal import Journal, account_link, key_entry, wallet_link
from services.keys.store import AccountRow, KeyEntry, Store
from services.keys.wallets import Wallets

# Every key is in its first version; a rotation makes the next one under the same id.
FIRST_VERSION = 1
ADDRESS_SIZE = 20


@dataclass(frozen=True)
class AccountPlace:
    """Where an account is. `chain_id` is CAIP-2 for secp256k1 and empty for Ed25519, which belongs to no chain here."""

    wallet_id: str
    chain_id: str
    path: AccountPath

    def __post_init__(self) -> None:
        """Raises WalletError INVALID_REQUEST naming the field."""
        if self.path.algorithm is Algorithm.ED25519:
            if self.chain_id:
                refuse("chain_id", "is empty for Ed25519")
        else:
            parse_chain_id(self.chain_id, "chain_id")

    @property
    def key_id(self) -> str:
        """The same on every chain, because the key is."""
        return f"key-{_digest(self.wallet_id, self.path.algorithm.value, str(self.path))}"

    @property
    def account_id(self) -> str:
        return f"acc-{_digest(self.wallet_id, self.chain_id, self.path.algorithm.value, str(self.path))}"


class Accounts:
    def __init__(self, store: Store, ceremonies: Ceremonies, journal: Journal, wallets: Wallets) -> None:
        self._store = store
        self._ceremonies = ceremonies
        self._journal = journal
        self._wallets = wallets

    async def create(self, place: AccountPlace) -> AccountRow:
        """The account at this place, derived now unless it exists.

        Raises:
            WalletError: NOT_FOUND for the wallet; EVIDENCE_UNAVAILABLE if its entry, or the wallet's, cannot be
                appended yet (repeat the call); the token's errors.
        """
        account = await self._store.find_account(place.account_id) or await self._make(place)
        await self._journal.ensure_appended(account_link(account.account_id))
        return account

    async def get(self, account_id: str) -> AccountRow:
        """Raises WalletError NOT_FOUND."""
        account = await self._store.find_account(account_id)
        if account is None:
            raise WalletError(Reason.NOT_FOUND, "no such account", field="account_id")
        return account

    async def get_by_address(self, chain_id: str, address: bytes) -> AccountRow:
        """Raises WalletError NOT_FOUND, or INVALID_REQUEST for an address of another size than 20 bytes."""
        if len(address) != ADDRESS_SIZE:
            refuse("address", f"has {ADDRESS_SIZE} bytes")
        account = await self._store.find_account_by_address(chain_id, address)
        if account is None:
            raise WalletError(Reason.NOT_FOUND, "no account with this address on this chain", field="address")
        return account

    async def _make(self, place: AccountPlace) -> AccountRow:
        wallet = await self._wallets.get(place.wallet_id)
        await self._journal.ensure_appended(wallet_link(wallet.wallet_id))
        public_key = await self._ceremonies.derive_account(
            SealedSeed(wallet.wallet_id, wallet.encrypted_seed), place.path
        )
        account = AccountRow(
            account_id=place.account_id,
            wallet_id=place.wallet_id,
            chain_id=place.chain_id,
            path=place.path,
            address=b"" if place.path.algorithm is Algorithm.ED25519 else address_of_public_key(public_key),
            public_key=public_key,
            key_id=place.key_id,
            key_version=FIRST_VERSION,
            created_at=datetime.now(UTC),
        )
        if await self._store.insert_account(account, _entry(account)):
            return account
        # Another call derived it meanwhile, the same but for its time.
        return await self.get(place.account_id)


def _digest(*parts: str) -> str:
    # No part holds a line feed, so different parts never join to the same text.
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _entry(account: AccountRow) -> KeyEntry:
    return key_entry(
        account_link(account.account_id),
        "account_derived",
        {
            "wallet_id": account.wallet_id,
            "account_id": account.account_id,
            "chain_id": account.chain_id or None,
            "address": to_hex(account.address) if account.address else None,
            "algorithm": account.path.algorithm.value,
            "derivation_path": str(account.path),
            "public_key": to_hex(account.public_key),
            "key_id": account.key_id,
            "key_version": account.key_version,
        },
    )
