from __future__ import annotations

import json

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.gateway.personal import Client, PersonalVault

CLIENT = Client("alice", "192.0.2.7", "sha256:00")


def test_a_sealed_client_opens_only_under_its_transfer_and_key() -> None:
    vault = PersonalVault(bytes(32))
    sealed = vault.seal("t-1", CLIENT)
    assert b"alice" not in sealed
    assert vault.unseal("t-1", sealed) == CLIENT
    assert vault.seal("t-1", CLIENT) != sealed
    with pytest.raises(InvalidTag):
        vault.unseal("t-2", sealed)
    with pytest.raises(InvalidTag):
        PersonalVault(b"\x01" * 32).unseal("t-1", sealed)


def test_a_signature_is_kept_and_its_absence_reads_as_before() -> None:
    vault = PersonalVault(bytes(32))
    signed = CLIENT._replace(client_signature=b"\x00\xff")
    assert vault.unseal("t-1", vault.seal("t-1", signed)) == signed
    # The row of a client without a key is what the version before wrote, and reads.
    sealed = vault.seal("t-1", CLIENT)
    plain = AESGCM(bytes(32)).decrypt(sealed[:12], sealed[12:], b"t-1")
    assert json.loads(plain) == ["alice", "192.0.2.7", "sha256:00"]


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        PersonalVault(bytes(31))
