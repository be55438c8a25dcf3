"""What is signed and what a signature is: keccak-256 digests, low-s secp256k1 signatures with a recovery bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NewType

import coincurve
import sha3

from services.core.errors import Reason, WalletError

Digest = NewType("Digest", bytes)

# SEC 2, section 2.4.1: the order of secp256k1's group.
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


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


class TokenMade(NamedTuple):
    """A signature as a token makes it, without a recovery bit, and what it should be."""

    raw_signature: bytes  # r ‖ s, 64 bytes
    digest: Digest
    public_key: bytes  # 33 bytes SEC1


def recover(digest: Digest, r: int, s: int, public_key: bytes) -> Signature:
    """The low-s signature of `digest` under `public_key` (33 bytes SEC1), with its recovery bit.

    Raises:
        WalletError: SIGNATURE_INVALID if the signature is not one of `digest` under `public_key`.
    """
    even = Signature(*low_s(r, s), 0)
    return _verified(even, pow(even.s, -1, CURVE_ORDER), digest, public_key)


def recover_all(made: Sequence[TokenMade]) -> list[Signature | WalletError]:
    """`recover` of many, one outcome each: the division that each needs is one division for all of them."""
    evens: list[Signature | WalletError] = []
    for one in made:
        try:
            evens.append(Signature(*low_s(*split_signature(one.raw_signature)), 0))
        except WalletError as error:
            evens.append(error)
    inverses = iter(_inverses([even.s for even in evens if isinstance(even, Signature)]))
    outcomes: list[Signature | WalletError] = []
    for even, one in zip(evens, made, strict=True):
        if isinstance(even, Signature):
            try:
                outcomes.append(_verified(even, next(inverses), one.digest, one.public_key))
            except WalletError as error:
                outcomes.append(error)
        else:
            outcomes.append(even)
    return outcomes


def _inverses(values: Sequence[int]) -> list[int]:
    """1/v modulo n of each 0 < v < n. Source: Montgomery 1987, 10.3.1, "simultaneous inversion"."""
    products = [1]
    for value in values:
        products.append(products[-1] * value % CURVE_ORDER)
    rest = pow(products.pop(), -1, CURVE_ORDER)
    inverses: list[int] = []
    for value, product in zip(reversed(values), reversed(products), strict=True):
        inverses.append(rest * product % CURVE_ORDER)
        rest = rest * value % CURVE_ORDER
    inverses.reverse()
    return inverses


def _verified(even: Signature, inverse_of_s: int, digest: Digest, public_key: bytes) -> Signature:
    """`even` with its true recovery bit, once it verifies.

    SEC 1, 4.1.4: a signature is valid if R = (z/s)·G + (r/s)·Q has the x that r is; the recovery bit is the parity of
    R's y. The library computes such a sum for recovery alone, SEC 1, 4.1.6: (s'/r')·R' - (z'/r')·G, where r' is the x
    of R'. With Q for R', s' = r·r'/s and z' = -z·r'/s that is R, whole, at once. Recovering Q instead would take one
    sum for each parity that is tried.
    """
    r, s = even.r, even.s
    x = int.from_bytes(public_key[1:], "big")
    factor = x * inverse_of_s % CURVE_ORDER
    # The recovery id: R' has the parity of Q's first byte, 2 or 3, and an x that is r', or r' + n.
    stand_in = (
        (x % CURVE_ORDER).to_bytes(32, "big")
        + (r * factor % CURVE_ORDER).to_bytes(32, "big")
        + bytes((public_key[0] & 1 | (x >= CURVE_ORDER) << 1,))
    )
    message = (-int.from_bytes(digest, "big") * factor % CURVE_ORDER).to_bytes(32, "big")
    point = _recovered(stand_in, message)
    # Ethereum has no recovery bit for an x of r + n.
    if point is None or point[1:] != r.to_bytes(32, "big") or len(public_key) != 33:
        raise WalletError(Reason.SIGNATURE_INVALID, "the signature is not one of the digest under the account's key")
    return Signature(r, s, 1) if point[0] & 1 else even


def recover_public_key(digest: Digest, signature: Signature) -> bytes:
    """The public key (33 bytes SEC1) under which `signature` signs `digest`.

    Raises:
        WalletError: SIGNATURE_INVALID if r is no point of the curve, or the key would be the point at infinity.
    """
    recoverable = signature.r.to_bytes(32, "big") + signature.s.to_bytes(32, "big") + bytes((signature.y_parity,))
    public_key = _recovered(recoverable, digest)
    if public_key is None:
        raise WalletError(Reason.SIGNATURE_INVALID, "no public key can have made the signature")
    return public_key


def _recovered(recoverable: bytes, digest: bytes) -> bytes | None:
    try:
        return coincurve.PublicKey.from_signature_and_message(recoverable, digest, hasher=None).format()
    except Exception:
        # coincurve raises a bare Exception where libsecp256k1 finds no point; there is nothing narrower to catch.
        return None
