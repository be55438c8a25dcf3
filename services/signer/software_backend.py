"""Signing by keys in this process's memory: for tests only, and never in production."""

from __future__ import annotations

from pathlib import Path

import coincurve
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)

from services.core.digests import Digest
from services.core.errors import Reason, WalletError
from services.runtime.token import ErrorOrigin, TokenIdentity
from services.signer.backend import RecentKeys, SealedLeaf


class SoftwareBackend:
    """Unwraps leaves with the RSA private key (PEM) of a file.

    Raises:
        WalletError: TOKEN_UNAVAILABLE where `env` is production.
    """

    def __init__(self, transport_key_file: Path | None, cached_leaves: int, env: str) -> None:
        if env == "production":
            raise WalletError(
                Reason.TOKEN_UNAVAILABLE,
                "the software backend does not start in production",
                field="WALLET_SIGNER_BACKEND",
                rule="pkcs11 where WALLET_ENV=production",
                origin=ErrorOrigin.SERVICE,
            )
        self._file = transport_key_file
        self._pair: rsa.RSAPrivateKey | None = None
        self._keys: RecentKeys[coincurve.PrivateKey] = RecentKeys(cached_leaves, lambda key: None)

    def open(self) -> TokenIdentity:
        try:
            pair = load_pem_private_key((self._file or Path()).read_bytes(), password=None)
        except (OSError, ValueError):
            pair = None
        if not isinstance(pair, rsa.RSAPrivateKey):
            raise WalletError(
                Reason.TOKEN_UNAVAILABLE, "the transport key file holds no RSA key", origin=ErrorOrigin.SERVICE
            )
        self._pair = pair
        return TokenIdentity(label="software", serial="0", library="coincurve")

    def transport_public_key(self) -> bytes:
        return self._transport_pair().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, leaf: SealedLeaf, digest: Digest) -> bytes:
        key = self._keys.get(leaf.key_ref)
        if key is None:
            key = self._unwrap(leaf)
            self._keys.put(leaf.key_ref, key)
        return key.sign_recoverable(digest, hasher=None)[:64]

    def close(self) -> None:
        self._keys.clear()
        self._pair = None

    def _transport_pair(self) -> rsa.RSAPrivateKey:
        if self._pair is None:
            self.open()
        assert self._pair is not None
        return self._pair

    def _unwrap(self, leaf: SealedLeaf) -> coincurve.PrivateKey:
        oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303 - as tokens do
        try:
            aes_key = self._transport_pair().decrypt(leaf.wrapped_aes_key, oaep)
            private_key = load_der_private_key(aes_key_unwrap_with_padding(aes_key, leaf.wrapped_private_key), None)
        except (ValueError, InvalidUnwrap, InvalidSignature):
            private_key = None
        if not isinstance(private_key, ec.EllipticCurvePrivateKey) or private_key.curve.name != "secp256k1":
            raise WalletError(Reason.KEY_NOT_FOUND, "the leaf key cannot be unwrapped", origin=ErrorOrigin.TOKEN)
        return coincurve.PrivateKey.from_int(private_key.private_numbers().private_value)
