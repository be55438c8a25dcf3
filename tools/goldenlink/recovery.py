"""The recovery key pair: it is made here, and the mnemonic is decrypted here; neither ever reaches the suite."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from services.core.errors import WalletError
from services.core.recovery import decrypt_recovery
from tools.goldenlink.exits import Exit, Failure


def make_key_file(path: Path) -> str:
    """Write a new private key (0x-hex, mode 0600, over no other file); answer the recipient to give to the suite."""
    key = X25519PrivateKey.generate()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise Failure(Exit.USAGE, f"{path}: {error.strerror}") from None
    with os.fdopen(handle, "w") as file:
        file.write(f"0x{key.private_bytes_raw().hex()}\n")
    return f"0x{key.public_key().public_bytes_raw().hex()}"


def open_recovery(encrypted: str, wallet_id: str, key_file: Path) -> str:
    """The mnemonic of a wallet's `encrypted_recovery`."""
    try:
        private_key = bytes.fromhex(key_file.read_text(encoding="utf-8").strip().removeprefix("0x"))
        message = bytes.fromhex(encrypted.removeprefix("0x"))
    except (OSError, ValueError) as error:
        raise Failure(Exit.USAGE, f"the key or the message cannot be read: {error}") from None
    try:
        return decrypt_recovery(message, wallet_id, private_key)
    except WalletError as error:
        raise Failure(Exit.NEGATIVE, error.message) from None
