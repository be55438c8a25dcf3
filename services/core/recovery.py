"""The mnemonic on its way to its owner: HPKE to a key that only the owner has. Made by `keys`, opened by the CLI.

Source: RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. The wallet id is bound by `info`: the
library's one-shot form takes no associated data.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from services.core.errors import Reason, WalletError, refuse

RECIPIENT_SIZE = 32
_INFO = b"goldenlink/recovery/v1:"


def encrypt_recovery(mnemonic: str, wallet_id: str, recipient: bytes) -> bytes:
    """Encapsulation ‖ ciphertext of `mnemonic` for the raw X25519 public key `recipient`.

    Raises:
        WalletError: INVALID_REQUEST if `recipient` is not 32 bytes, or a point that no exchange may use.
    """
    check_recipient(recipient)
    try:
        return _suite().encrypt(mnemonic.encode(), X25519PublicKey.from_public_bytes(recipient), _info(wallet_id))
    except ValueError:
        # RFC 7748 §6.1: an all-zero shared secret, from a point of small order.
        refuse("recovery_recipient", "is not a point of small order")


def decrypt_recovery(encrypted: bytes, wallet_id: str, private_key: bytes) -> str:
    """The mnemonic, by the raw X25519 private key of the recipient.

    Raises:
        WalletError: INVALID_REQUEST if it was not encrypted to this key for this wallet.
    """
    try:
        return _suite().decrypt(encrypted, X25519PrivateKey.from_private_bytes(private_key), _info(wallet_id)).decode()
    except (InvalidTag, ValueError):
        raise WalletError(
            Reason.INVALID_REQUEST, "not encrypted to this key for this wallet", field="encrypted_recovery"
        ) from None


def check_recipient(recipient: bytes) -> None:
    if len(recipient) != RECIPIENT_SIZE:
        refuse("recovery_recipient", "is an X25519 public key of 32 bytes, or empty")


def _suite() -> Suite:
    return Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def _info(wallet_id: str) -> bytes:
    return _INFO + wallet_id.encode()
