"""Signing by a PKCS#11 token: leaves are unwrapped inside it and kept there as session objects."""

from __future__ import annotations

from services.core.digests import Digest
from services.core.errors import Reason, WalletError
from services.runtime.settings import TokenSettings
from services.runtime.token import KeyHandle, TokenIdentity, TokenSession
from services.signer.backend import TRANSPORT_LABEL, RecentKeys, SealedLeaf


class Pkcs11Backend:
    def __init__(self, settings: TokenSettings, cached_leaves: int) -> None:
        self._session = TokenSession(settings)
        self._keys: RecentKeys[KeyHandle] = RecentKeys(cached_leaves, self._session.destroy)

    def open(self) -> TokenIdentity:
        return self._session.open()

    def transport_public_key(self) -> bytes:
        return self._session.transport_public_key(TRANSPORT_LABEL)

    def sign(self, leaf: SealedLeaf, digest: Digest) -> bytes:
        try:
            return self._session.sign_digest(self._key(leaf), digest)
        except WalletError as error:
            # A lost session takes its objects along: unwrap again in the new one, once.
            if error.reason is not Reason.TOKEN_UNAVAILABLE:
                raise
            self._keys.clear()
            return self._session.sign_digest(self._key(leaf), digest)

    def close(self) -> None:
        self._session.close()

    def _key(self, leaf: SealedLeaf) -> KeyHandle:
        key = self._keys.get(leaf.key_ref)
        if key is None or not self._session.holds(key):
            key = self._session.unwrap_leaf(TRANSPORT_LABEL, leaf.wrapped_aes_key, leaf.wrapped_private_key)
            self._keys.put(leaf.key_ref, key)
        return key
