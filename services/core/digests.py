"""What is signed and what a signature is: keccak-256 digests, low-s secp256k1 signatures with a recovery bit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NewType

import coincurve
import sha3
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from services.core.errors import Reason, WalletError

Digest = NewType("Digest", bytes)

# SEC 2, section 2.4.1: the order of secp256k1's group.
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_FIELD_PRIME = 2**256 - 2**32 - 977


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature that Ethereum accepts: 1 ≤ r < n, 1 ≤ s ≤ n/2 (EIP-2), y_parity 0 or 1 (parity of the point R's y).

    Raises:
        WalletError: SIGNATURE_INVALID if a part is out of range.
    """

    r: int
    s: int
    y_parity: int

    def __post_init__(self) -> None:
        if not (0 < self.r < CURVE_ORDER and 0 < self.s <= CURVE_ORDER // 2 and self.y_parity in (0, 1)):
            raise WalletError(Reason.SIGNATURE_INVALID, "a part of the signature is out of range", rule="EIP-2")


def keccak256(data: bytes) -> Digest:
    """Keccak-256 as Ethereum uses it (the padding before FIPS 202), 32 bytes."""
    return Digest(sha3.keccak_256(data).digest())


def split_signature(raw_signature: bytes) -> tuple[int, int]:
    """r and s of the 64 bytes r ‖ s that PKCS#11's CKM_ECDSA returns.

    Raises:
        WalletError: SIGNATURE_INVALID if there are not 64 bytes.
    """
    if len(raw_signature) != 64:
        raise WalletError(Reason.SIGNATURE_INVALID, "the token's signature has a wrong size", rule="64 bytes r ‖ s")
    return int.from_bytes(raw_signature[:32], "big"), int.from_bytes(raw_signature[32:], "big")


def low_s(r: int, s: int) -> tuple[int, int]:
    """The same signature with s ≤ n/2 (EIP-2): (r, s) and (r, n − s) verify alike, and tokens return either."""
    return r, CURVE_ORDER - s if s > CURVE_ORDER // 2 else s


def recover(digest: Digest, r: int, s: int, public_key: bytes) -> Signature:
    """The low-s signature of `digest` under `public_key` (33 bytes SEC1), with its recovery bit.

    A token returns no recovery bit. The even one is right if recovery under it yields `public_key`, which verifies the
    signature too. If it yields another key and the signature verifies all the same, the odd one is right: R, the point
    behind r, has one of two signs. (Verifying costs less than recovering again.)

    Raises:
        WalletError: SIGNATURE_INVALID if the signature is not one of `digest` under `public_key`.
    """
    r, s = low_s(r, s)
    even = Signature(r, s, 0)
    if _public_key_of(digest, even) == public_key:
        return even
    # SEC 1, 4.1.6: below p − n, R's x may be r + n as well, and Ethereum has no recovery bit for that.
    if r >= _FIELD_PRIME - CURVE_ORDER and _verifies(digest, even, public_key):
        return Signature(r, s, 1)
    raise WalletError(Reason.SIGNATURE_INVALID, "the signature is not one of the digest under the account's key")


@lru_cache(maxsize=1_024)
def _parsed(public_key: bytes) -> coincurve.PublicKey:
    return coincurve.PublicKey(public_key)


def _verifies(digest: Digest, signature: Signature, public_key: bytes) -> bool:
    return _parsed(public_key).verify(encode_dss_signature(signature.r, signature.s), digest, hasher=None)


def recover_public_key(digest: Digest, signature: Signature) -> bytes:
    """The public key (33 bytes SEC1) under which `signature` signs `digest`.

    Raises:
        WalletError: SIGNATURE_INVALID if r is no point of the curve, or the key would be the point at infinity.
    """
    public_key = _public_key_of(digest, signature)
    if public_key is None:
        raise WalletError(Reason.SIGNATURE_INVALID, "no public key can have made the signature")
    return public_key


def _public_key_of(digest: Digest, signature: Signature) -> bytes | None:
    recoverable = signature.r.to_bytes(32, "big") + signature.s.to_bytes(32, "big") + bytes([signature.y_parity])
    try:
        return coincurve.PublicKey.from_signature_and_message(recoverable, digest, hasher=None).format()
    except Exception:
        # coincurve raises a bare Exception where libsecp256k1 finds no point; there is nothing narrower to catch.
        return None
