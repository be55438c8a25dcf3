"""The mnemonic opens for its owner and nobody else."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from services.core.errors import WalletError
from services.core.recovery import decrypt_recovery, encrypt_recovery

OWNER, OTHER = (X25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))


def test_recovery_opens_for_its_recipient_and_wallet_only() -> None:
    encrypted = encrypt_recovery("abandon about", "wallet-1", OWNER.public_key().public_bytes_raw())
    assert b"abandon" not in encrypted
    assert decrypt_recovery(encrypted, "wallet-1", OWNER.private_bytes_raw()) == "abandon about"
    for wallet_id, key in (("wallet-2", OWNER), ("wallet-1", OTHER)):
        with pytest.raises(WalletError) as caught:
            decrypt_recovery(encrypted, wallet_id, key.private_bytes_raw())
        assert caught.value.details["field"] == "encrypted_recovery"


@pytest.mark.parametrize("recipient", [bytes(32), bytes(31), b"\x01" + bytes(31)])
def test_a_useless_recipient_is_refused(recipient: bytes) -> None:
    with pytest.raises(WalletError) as caught:
        encrypt_recovery("abandon about", "wallet-1", recipient)
    assert caught.value.details["field"] == "recovery_recipient"
