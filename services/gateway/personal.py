"""Who asked, encrypted in the row until the intent is entered in the log; then the row drops it."""

from __future__ import annotations

import json
import secrets
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protos.wallet.v1.common_pb2 import Requester

_NONCE_BYTES = 12
_KEY_BYTES = 32


class Client(NamedTuple):
    """Personal data: the credential's name, the peer's IP address, a fingerprint of its key or of its user agent."""

    actor: str
    source_ip: str
    client_fingerprint: str
    # Serialised ClientSignature; empty where the credential has no key.
    client_signature: bytes = b""


class PersonalVault:
    """AES-256-GCM under one key, the transfer id as associated data: a row's ciphertext fits no other row.

    NIST SP 800-38D §8.3 allows 2**32 encryptions with random nonces under one key.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise ValueError(f"the encryption key has {len(key)} bytes, not {_KEY_BYTES}")
        self._cipher = AESGCM(key)

    @classmethod
    def open(cls, key_file: Path) -> PersonalVault:
        return cls(key_file.read_bytes())

    def seal(self, transfer_id: str, client: Client) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        *texts, signature = client
        # Without a signature the three texts that every version of this service reads.
        plain = [*texts, signature.hex()] if signature else texts
        return nonce + self._cipher.encrypt(nonce, json.dumps(plain).encode(), transfer_id.encode())

    def unseal(self, transfer_id: str, sealed: bytes) -> Client:
        """Raises cryptography's InvalidTag when the key or the row is another."""
        text = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], transfer_id.encode())
        actor, source_ip, client_fingerprint, *signature = json.loads(text)
        return Client(actor, source_ip, client_fingerprint, bytes.fromhex("".join(signature)))


def requester(client: Client, requested_at: datetime) -> Requester:
    message = Requester(actor=client.actor, source_ip=client.source_ip, client_fingerprint=client.client_fingerprint)
    message.requested_at.FromDatetime(requested_at)
    if client.client_signature:
        message.client_signature.ParseFromString(client.client_signature)
    return message
