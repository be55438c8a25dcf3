"""Wallets: a seed that nobody sees, and a recovery text for the owner alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from services.core.canonical import to_hex
from services.core.entries import check_link_id
from services.core.errors import Reason, WalletError, refuse
from services.core.recovery import check_recipient
from services.keys.ceremonies import Ceremonies
from services.keys.journal import Journal, key_entry, wallet_link
from services.keys.sealing_key import SealingKey
from services.keys.store import KeyEntry, Store, WalletRow

DEFAULT_STRENGTH_BITS = 256
STRENGTHS_BITS = (128, 160, 192, 224, 256)  # BIP-39
MAX_NAME = 128


@dataclass(frozen=True)
class NewWallet:
    """What the caller asks for. `recovery_recipient` is 32 bytes X25519, or empty; strength 0 means 256."""

    wallet_id: str
    name: str
    strength_bits: int
    recovery_recipient: bytes

    def __post_init__(self) -> None:
        """Raises WalletError INVALID_REQUEST naming the field."""
        check_link_id(self.wallet_id, "wallet_id")
        if len(self.name) > MAX_NAME:
            refuse("name", f"has at most {MAX_NAME} characters")
        if "\0" in self.name:
            refuse("name", "has no NUL")
        if self.strength_bits not in (0, *STRENGTHS_BITS):
            refuse("strength_bits", "is 128, 160, 192, 224 or 256, or 0 for 256")
        if self.recovery_recipient:
            check_recipient(self.recovery_recipient)


class Wallets:
    def __init__(self, store: Store, ceremonies: Ceremonies, sealing_key: SealingKey, journal: Journal) -> None:
        self._store = store
        self._sealing_key = sealing_key
        self._ceremonies = ceremonies
        self._journal = journal

    async def create(self, wanted: NewWallet) -> WalletRow:
        """The wallet of this id, made now unless it exists with the same fields.

        Raises:
            WalletError: ALREADY_EXISTS if it exists with others; EVIDENCE_UNAVAILABLE if its entry cannot be appended
                yet (the wallet is stored: repeat the call); the token's errors.
        """
        wallet = await self._store.find_wallet(wanted.wallet_id) or await self._make(wanted)
        asked = (wanted.name, wanted.strength_bits or DEFAULT_STRENGTH_BITS, wanted.recovery_recipient)
        if (wallet.name, wallet.strength_bits, wallet.recovery_recipient) != asked:
            raise WalletError(
                Reason.ALREADY_EXISTS, "the wallet exists with another name, strength or recipient", field="wallet_id"
            )
        await self._journal.ensure_appended(wallet_link(wallet.wallet_id))
        return wallet

    async def get(self, wallet_id: str) -> WalletRow:
        """Raises WalletError NOT_FOUND."""
        wallet = await self._store.find_wallet(wallet_id)
        if wallet is None:
            raise WalletError(Reason.NOT_FOUND, "no such wallet", field="wallet_id")
        return wallet

    async def _make(self, wanted: NewWallet) -> WalletRow:
        strength_bits = wanted.strength_bits or DEFAULT_STRENGTH_BITS
        # A crash before the insert loses a seed that nobody has seen and nothing was sent to.
        seed = await self._ceremonies.create_wallet(
            wanted.wallet_id, strength_bits, wanted.recovery_recipient, await self._sealing_key.id()
        )
        wallet = WalletRow(
            wallet_id=wanted.wallet_id,
            name=wanted.name,
            strength_bits=strength_bits,
            recovery_recipient=wanted.recovery_recipient,
            encrypted_seed=seed.encrypted_seed,
            encrypted_recovery=seed.encrypted_recovery,
            created_at=datetime.now(UTC),
        )
        if await self._store.insert_wallet(wallet, _entry(wallet)):
            return wallet
        # Another call made it meanwhile: its seed counts, ours is forgotten.
        return await self.get(wanted.wallet_id)


def _entry(wallet: WalletRow) -> KeyEntry:
    recipient = wallet.recovery_recipient
    return key_entry(
        wallet_link(wallet.wallet_id),
        "wallet_created",
        {
            "wallet_id": wallet.wallet_id,
            "strength_bits": wallet.strength_bits,
            "recovery_recipient_sha256": to_hex(hashlib.sha256(recipient).digest()) if recipient else None,
        },
    )
