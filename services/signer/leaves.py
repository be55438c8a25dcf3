"""Leaf keys as `keys` wraps them to this signer's transport pair, kept while they are used."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256

from protos.wallet.v1 import common_pb2, keys_pb2, keys_pb2_grpc
from services.core.addresses import Address, address_of_public_key
from services.core.errors import Reason, WalletError
from services.signer.backend import SealedLeaf
from services.signer.workers import TokenPool

_PUBLIC_KEY_BYTES = 33


@dataclass(frozen=True, slots=True)
class Leaf:
    """A wrapped leaf and what is known of it in clear."""

    sealed: SealedLeaf
    public_key: bytes  # 33 bytes SEC1
    address: Address
    derivation_path: str
    hd_index: int  # the path's last, without its hardening mark
    wallet_id: str


class Leaves:
    """At most `capacity` leaves, by key id, version and transport pair."""

    def __init__(self, stub: keys_pb2_grpc.KeysAsyncStub, pool: TokenPool, capacity: int) -> None:
        self._stub = stub
        self._pool = pool
        self._capacity = capacity
        self._leaves: OrderedDict[tuple[str, int, bytes], Leaf] = OrderedDict()
        self._registered: bytes | None = None  # fingerprint of the pair that `keys` knows
        self._approved = False
        self._registering = asyncio.Lock()

    @property
    def approved(self) -> bool:
        """Whether `keys` has said that it wraps leaves to this signer's pair."""
        return self._approved

    async def register(self) -> bytes:
        """Make this signer's transport pair known to `keys`; its fingerprint. Again until it is approved.

        Raises:
            WalletError: of the token, or of `keys`.
        """
        public_key_der = await self._pool.transport_key()
        fingerprint = sha256(public_key_der).digest()
        if self._registered == fingerprint and self._approved:
            return fingerprint
        async with self._registering:
            if self._registered == fingerprint and self._approved:
                return fingerprint
            token = self._pool.identity
            reply = await self._stub.RegisterTransportKey(
                keys_pb2.RegisterTransportKeyRequest(
                    public_key_der=public_key_der, token_label=token.label, token_serial=token.serial
                )
            )
            self._registered, self._approved = reply.fingerprint, reply.approved
            if reply.fingerprint != fingerprint:
                raise WalletError(Reason.INTERNAL, "keys registered another transport key than this signer's")
            return fingerprint

    async def get(self, key_id: str, version: int) -> Leaf:
        """The leaf of a key.

        Raises:
            WalletError: KEY_NOT_FOUND, or what keeps the token or `keys` from serving it.
        """
        # The pair belongs to the token: another token, another fingerprint, and nothing cached fits.
        fingerprint = sha256(await self._pool.transport_key()).digest()
        name = (key_id, version, fingerprint)
        leaf = self._leaves.get(name)
        if leaf is None:
            leaf = await self._fetch(key_id, version)
            self._leaves[name] = leaf
            if len(self._leaves) > self._capacity:
                self._leaves.popitem(last=False)
        self._leaves.move_to_end(name)
        return leaf

    async def _fetch(self, key_id: str, version: int) -> Leaf:
        key = common_pb2.KeyVersion(key_id=key_id, version=version)
        fingerprint = await self.register()
        try:
            wrapped = await self._stub.WrapLeaf(keys_pb2.WrapLeafRequest(key=key, transport_fingerprint=fingerprint))
        except WalletError as error:
            if error.reason is not Reason.NOT_FOUND or error.details.get("field") != "transport_fingerprint":
                raise
            # `keys` does not know the pair any more, as after a restored backup.
            self._registered = None
            fingerprint = await self.register()
            wrapped = await self._stub.WrapLeaf(keys_pb2.WrapLeafRequest(key=key, transport_fingerprint=fingerprint))
        if wrapped.algorithm != keys_pb2.ALGORITHM_ECDSA_SECP256K1 or len(wrapped.public_key) != _PUBLIC_KEY_BYTES:
            raise WalletError(Reason.KEY_NOT_FOUND, "the key is not one of secp256k1", field="key")
        address = address_of_public_key(wrapped.public_key)
        if address != wrapped.address:
            raise WalletError(Reason.KEY_NOT_FOUND, "the key's public half and address differ", field="key")
        return Leaf(
            sealed=SealedLeaf(f"{key_id}:{version}", wrapped.wrapped_aes_key, wrapped.wrapped_private_key),
            public_key=wrapped.public_key,
            address=address,
            derivation_path=wrapped.derivation_path,
            hd_index=int(wrapped.derivation_path.rpartition("/")[2].rstrip("'")),
            wallet_id=wrapped.wallet_id,
        )
