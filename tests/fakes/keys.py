"""Leaf keys from memory, wrapped the way `keys` wraps them."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import coincurve
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_public_key

from protos.wallet.v1 import keys_pb2, keys_pb2_grpc
from services.core.addresses import Address, address_of_public_key
from services.core.errors import Reason, WalletError


def wrap_leaf(private_key: coincurve.PrivateKey, transport_key_der: bytes) -> tuple[bytes, bytes]:
    """(AES key under RSA-OAEP, PKCS#8 under that AES key)."""
    transport_key = load_der_public_key(transport_key_der)
    assert isinstance(transport_key, rsa.RSAPublicKey)
    pkcs8 = ec.derive_private_key(private_key.to_int(), ec.SECP256K1()).private_bytes(
        Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
    )
    aes_key = os.urandom(32)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)
    return transport_key.encrypt(aes_key, oaep), aes_key_wrap_with_padding(aes_key, pkcs8)


class FakeKeys(keys_pb2_grpc.KeysServicer):
    def __init__(self) -> None:
        self.approved = True
        self.wrapped = 0
        self._private_keys: dict[tuple[str, int], coincurve.PrivateKey] = {}
        self._transport_keys: dict[bytes, bytes] = {}

    def add(self, key_id: str, version: int = 1) -> Address:
        """A new random key; its address."""
        private_key = coincurve.PrivateKey()
        self._private_keys[key_id, version] = private_key
        return address_of_public_key(private_key.public_key.format())

    def forget_transport_keys(self) -> None:
        self._transport_keys.clear()

    async def RegisterTransportKey(
        self, request: keys_pb2.RegisterTransportKeyRequest, context: Any
    ) -> keys_pb2.RegisterTransportKeyResponse:
        fingerprint = hashlib.sha256(request.public_key_der).digest()
        self._transport_keys[fingerprint] = request.public_key_der
        return keys_pb2.RegisterTransportKeyResponse(fingerprint=fingerprint, approved=self.approved)

    async def WrapLeaf(self, request: keys_pb2.WrapLeafRequest, context: Any) -> keys_pb2.WrappedLeaf:
        transport_key = self._transport_keys.get(request.transport_fingerprint)
        if transport_key is None:
            raise WalletError(Reason.NOT_FOUND, "the transport key is not registered", field="transport_fingerprint")
        if not self.approved:
            raise WalletError(Reason.TRANSPORT_KEY_NOT_APPROVED, "not approved", field="transport_fingerprint")
        private_key = self._private_keys.get((request.key.key_id, request.key.version))
        if private_key is None:
            raise WalletError(Reason.KEY_NOT_FOUND, Reason.KEY_NOT_FOUND.meaning, field="key")
        self.wrapped += 1
        wrapped_aes_key, wrapped_private_key = wrap_leaf(private_key, transport_key)
        public_key = private_key.public_key.format()
        return keys_pb2.WrappedLeaf(
            key=request.key,
            algorithm=keys_pb2.ALGORITHM_ECDSA_SECP256K1,
            wrapped_aes_key=wrapped_aes_key,
            wrapped_private_key=wrapped_private_key,
            public_key=public_key,
            derivation_path="m/44'/60'/0'/0/0",
            wallet_id="treasury",
            address=address_of_public_key(public_key),
        )
