"""What a signing backend does, for the child that owns it. Implementations: PKCS#11, and software keys for tests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

from services.core.digests import Digest
from services.runtime.token import TokenIdentity

K = TypeVar("K")

# Label of the transport pair in the token. A new version is a new pair, registered anew.
TRANSPORT_LABEL = "transport-v1"


class SealedLeaf(NamedTuple):
    """A leaf key that only the token can read."""

    key_ref: str  # key id and version
    wrapped_aes_key: bytes
    wrapped_private_key: bytes


class SigningBackend(Protocol):
    """Blocking; one caller at a time. Every method may raise WalletError, with `origin` in its details."""

    def open(self) -> TokenIdentity:
        """Be ready to sign, or say why not: TOKEN_UNAVAILABLE, TOKEN_PIN_INCORRECT."""

    def transport_public_key(self) -> bytes:
        """SubjectPublicKeyInfo (DER) of the pair that leaves are wrapped to; its private half never leaves."""

    def sign(self, leaf: SealedLeaf, digest: Digest) -> bytes:
        """r ‖ s, 64 bytes, over secp256k1. KEY_NOT_FOUND if the leaf cannot be unwrapped."""

    def close(self) -> None:
        """Let go of the token."""


class RecentKeys(Generic[K]):
    """At most `capacity` unwrapped keys; the one unused for longest is destroyed first."""

    def __init__(self, capacity: int, destroy: Callable[[K], None]) -> None:
        self._capacity = capacity
        self._destroy = destroy
        self._keys: OrderedDict[str, K] = OrderedDict()

    def get(self, key_ref: str) -> K | None:
        key = self._keys.get(key_ref)
        if key is not None:
            self._keys.move_to_end(key_ref)
        return key

    def put(self, key_ref: str, key: K) -> None:
        self._keys[key_ref] = key
        self._keys.move_to_end(key_ref)
        while len(self._keys) > self._capacity:
            _, oldest = self._keys.popitem(last=False)
            self._destroy(oldest)

    def clear(self) -> None:
        """Forget all of them: their session is gone, and they with it."""
        self._keys.clear()
