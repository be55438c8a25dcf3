"""Public keys of API clients, by which they sign what they ask for and what they approve."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

_PublicKey = Ed25519PublicKey | EllipticCurvePublicKey
# Both algorithms: two numbers of 32 bytes.
_SIGNATURE_BYTES = 64


class Algorithm(StrEnum):
    """Names of the IANA registry "HTTP Signature Algorithms"."""

    ED25519 = "ed25519"
    ECDSA_P256_SHA256 = "ecdsa-p256-sha256"


@dataclass(frozen=True)
class ClientKey:
    # SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), DER.
    public_key_der: bytes
    revoked: bool = False

    @property
    def fingerprint(self) -> str:
        """`sha256:` and the hex SHA-256 of the DER: the `keyid` of its signatures."""
        return "sha256:" + hashlib.sha256(self.public_key_der).hexdigest()

    @property
    def algorithm(self) -> Algorithm:
        ed25519 = isinstance(_load(self.public_key_der), Ed25519PublicKey)
        return Algorithm.ED25519 if ed25519 else Algorithm.ECDSA_P256_SHA256

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Is `signature`, as RFC 9421 §3.3.4 and §3.3.6 write it (r ‖ s, R ‖ S), this key's over `message`?"""
        if len(signature) != _SIGNATURE_BYTES:
            return False
        key = _load(self.public_key_der)
        try:
            if isinstance(key, Ed25519PublicKey):
                key.verify(signature, message)
            else:
                r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
                key.verify(encode_dss_signature(r, s), message, ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True


def read_public_key(pem: bytes) -> ClientKey:
    """The key of a PEM file ("BEGIN PUBLIC KEY").

    Raises:
        ValueError: it is no public key, or neither Ed25519 nor P-256.
    """
    try:
        key = load_pem_public_key(pem)
    except ValueError as error:
        raise ValueError("it is no public key in PEM") from error
    # Written anew: one key has one encoding, and so one fingerprint.
    return ClientKey(_of_client(key).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def read_key_der(der: bytes) -> ClientKey:
    """The key of a SubjectPublicKeyInfo.

    Raises:
        ValueError: it is no public key, or neither Ed25519 nor P-256.
    """
    try:
        _load(der)
    except UnsupportedAlgorithm as error:
        raise ValueError("it is no public key that is known here") from error
    return ClientKey(der)


def _of_client(key: object) -> _PublicKey:
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return key
    raise ValueError("a client signs with Ed25519 or with ECDSA on P-256")


@lru_cache(maxsize=1_024)
def _load(der: bytes) -> _PublicKey:
    return _of_client(load_der_public_key(der))
