"""Leaf keys for signers: transport keys that may receive them, and the wrapping."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from services.core.canonical import to_hex
from services.core.errors import Reason, WalletError, refuse
from services.keys.ceremonies import Ceremonies, SealedSeed
from services.keys.journal import Journal, account_link, key_entry, transport_link
from services.keys.store import AccountRow, KeyEntry, Store, TransportKeyRow, WrappedLeafRow
from services.keys.wallets import Wallets

MIN_RSA_BITS, MAX_RSA_BITS = 2_048, 4_096
MAX_TOKEN_TEXT = 64


@dataclass(frozen=True)
class Approval:
    """Which transport keys are served: all in development, in production those that an operator listed."""

    required: bool
    file: Path | None

    def covers(self, fingerprint: bytes) -> bool:
        return not self.required or fingerprint in self._listed()

    def _listed(self) -> frozenset[bytes]:
        """Raises WalletError INTERNAL, naming the line, for a line that is no fingerprint."""
        if self.file is None or not self.file.exists():
            return frozenset()
        fingerprints = set()
        for number, line in enumerate(self.file.read_text(encoding="utf-8").splitlines(), 1):
            text = line.partition("#")[0].strip()
            if text:
                try:
                    fingerprints.add(bytes.fromhex(text))
                except ValueError:
                    raise WalletError(
                        Reason.INTERNAL, "the file of approved transport keys holds another line", line=number
                    ) from None
        return frozenset(fingerprints)


class Leaves:
    def __init__(
        self, store: Store, ceremonies: Ceremonies, journal: Journal, wallets: Wallets, approval: Approval
    ) -> None:
        self._store = store
        self._ceremonies = ceremonies
        self._journal = journal
        self._wallets = wallets
        self._approval = approval

    async def register(self, public_key_der: bytes, token_label: str, token_serial: str) -> tuple[bytes, bool]:
        """(SHA-256 fingerprint, approved) of a signer's transport key, entered in the log.

        Raises:
            WalletError: INVALID_REQUEST unless it is an RSA key of 2,048 to 4,096 bits; ALREADY_EXISTS if it is
                registered for another token; EVIDENCE_UNAVAILABLE if its entry cannot be appended yet.
        """
        check_transport_key(public_key_der)
        for field, text in (("token_label", token_label), ("token_serial", token_serial)):
            if len(text) > MAX_TOKEN_TEXT:
                refuse(field, f"has at most {MAX_TOKEN_TEXT} characters")
        fingerprint = hashlib.sha256(public_key_der).digest()
        key = await self._store.find_transport_key(fingerprint)
        if key is None:
            wanted = TransportKeyRow(fingerprint, public_key_der, token_label, token_serial, datetime.now(UTC))
            if await self._store.insert_transport_key(wanted, _entry(wanted)):
                key = wanted
            else:
                key = await self._transport_key(fingerprint)
        if (key.token_label, key.token_serial) != (token_label, token_serial):
            raise WalletError(Reason.ALREADY_EXISTS, "the key is registered for another token", field="public_key_der")
        await self._journal.ensure_appended(transport_link(fingerprint))
        return fingerprint, self._approval.covers(fingerprint)

    async def wrap(self, key_id: str, key_version: int, fingerprint: bytes) -> tuple[AccountRow, WrappedLeafRow]:
        """The leaf key of an account, wrapped to a transport key; the same bytes at each call.

        Raises:
            WalletError: NOT_FOUND for an unregistered transport key, TRANSPORT_KEY_NOT_APPROVED, KEY_NOT_FOUND,
                EVIDENCE_UNAVAILABLE while the log knows the account or the transport key not yet; the token's errors.
        """
        transport_key = await self._transport_key(fingerprint)
        if not self._approval.covers(fingerprint):
            raise WalletError(
                Reason.TRANSPORT_KEY_NOT_APPROVED,
                Reason.TRANSPORT_KEY_NOT_APPROVED.meaning,
                field="transport_fingerprint",
                fingerprint=fingerprint.hex(),
            )
        account = await self._store.find_account_of_key(key_id, key_version)
        if account is None:
            raise WalletError(Reason.KEY_NOT_FOUND, Reason.KEY_NOT_FOUND.meaning, field="key")
        leaf = await self._store.find_wrapped_leaf(key_id, key_version, fingerprint)
        if leaf is None:
            await self._journal.ensure_appended(transport_link(fingerprint))
            await self._journal.ensure_appended(account_link(account.account_id))
            leaf = await self._make(account, transport_key)
        return account, leaf

    async def _make(self, account: AccountRow, transport_key: TransportKeyRow) -> WrappedLeafRow:
        wallet = await self._wallets.get(account.wallet_id)
        wrapped = await self._ceremonies.wrap_leaf(
            SealedSeed(wallet.wallet_id, wallet.encrypted_seed), account.path, transport_key.public_key_der
        )
        leaf = WrappedLeafRow(
            account.key_id,
            account.key_version,
            transport_key.fingerprint,
            wrapped.wrapped_aes_key,
            wrapped.wrapped_private_key,
        )
        # If another call was first, both wrappings hold the same key: either serves.
        await self._store.insert_wrapped_leaf(leaf)
        return leaf

    async def _transport_key(self, fingerprint: bytes) -> TransportKeyRow:
        key = await self._store.find_transport_key(fingerprint)
        if key is None:
            raise WalletError(Reason.NOT_FOUND, "the transport key is not registered", field="transport_fingerprint")
        return key


def check_transport_key(public_key_der: bytes) -> None:
    rule = f"is the SubjectPublicKeyInfo of an RSA key of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits, in DER"
    try:
        key = load_der_public_key(public_key_der)
    except (ValueError, UnsupportedAlgorithm):
        refuse("public_key_der", rule)
    if not isinstance(key, RSAPublicKey) or not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        refuse("public_key_der", rule)
    # One key has one fingerprint only if it has one encoding.
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != public_key_der:
        refuse("public_key_der", rule)


def _entry(key: TransportKeyRow) -> KeyEntry:
    return key_entry(
        transport_link(key.fingerprint),
        "transport_key_registered",
        {
            "fingerprint": to_hex(key.fingerprint),
            "public_key_der": to_hex(key.public_key_der),
            "token": {"label": key.token_label, "serial": key.token_serial},
        },
    )
