"""Wallets, accounts and leaf keys in memory: random keys, wrapped the way `keys` wraps them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import coincurve
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_public_key

from protos.wallet.v1 import keys_pb2, keys_pb2_grpc
from services.core.addresses import Address, address_of_public_key
from services.core.errors import Reason, WalletError, refuse
from services.core.paths import AccountPath, Algorithm
from services.keys.accounts import AccountPlace
from services.keys.leaves import check_transport_key
from services.keys.wallets import NewWallet
from services.runtime.mtls import caller_identity
from tests.fakes.script import Script

_FIRST_PATH = AccountPath(Algorithm.ECDSA_SECP256K1, 0, 0, 0)


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


@dataclass(frozen=True)
class _Leaf:
    """A key and where in which wallet it would be."""

    private_key: coincurve.PrivateKey
    wallet_id: str
    path: AccountPath

    @property
    def public_key(self) -> bytes:
        return bytes(self.private_key.public_key.format())


class FakeKeys(keys_pb2_grpc.KeysServicer):
    """secp256k1 only; every transport key is approved."""

    def __init__(self) -> None:
        self.script = Script()
        self.missing: list[str] = []
        self._wallets: dict[str, tuple[NewWallet, keys_pb2.Wallet]] = {}
        self._accounts: dict[str, keys_pb2.Account] = {}
        self._leaves: dict[tuple[str, int], _Leaf] = {}
        self._transport_keys: dict[bytes, keys_pb2.RegisterTransportKeyRequest] = {}
        self._wrapped: dict[tuple[str, int, bytes], tuple[bytes, bytes]] = {}

    def add(self, key_id: str, version: int = 1) -> Address:
        """A new random key; its address."""
        leaf = self._leaves[key_id, version] = _Leaf(coincurve.PrivateKey(), "treasury", _FIRST_PATH)
        return address_of_public_key(leaf.public_key)

    def add_account(self, account_id: str, chain_id: str = "eip155:31337") -> keys_pb2.Account:
        """An account of a new random key."""
        key_id = f"key-{account_id}"
        self.add(key_id)
        return self._add_account(account_id, chain_id, key_id)

    def forget_transport_keys(self) -> None:
        self._transport_keys.clear()

    async def GetKeysStatus(self, request: keys_pb2.GetKeysStatusRequest, context: Any) -> keys_pb2.KeysStatus:
        self.script.begin("GetKeysStatus")
        return keys_pb2.KeysStatus(token_ready=not self.missing, missing=self.missing)

    async def CreateWallet(self, request: keys_pb2.CreateWalletRequest, context: Any) -> keys_pb2.Wallet:
        self.script.begin("CreateWallet")
        wanted = NewWallet(request.wallet_id, request.name, request.strength_bits or 256, request.recovery_recipient)
        if request.wallet_id not in self._wallets:
            wallet = keys_pb2.Wallet(wallet_id=request.wallet_id, name=request.name)
            if request.recovery_recipient:
                wallet.encrypted_recovery = b"sealed"
            wallet.created_at.GetCurrentTime()
            self._wallets[request.wallet_id] = wanted, wallet
        first, wallet = self._wallets[request.wallet_id]
        if first != wanted:
            raise WalletError(Reason.ALREADY_EXISTS, "the wallet exists otherwise", field="wallet_id")
        return wallet

    async def GetWallet(self, request: keys_pb2.GetWalletRequest, context: Any) -> keys_pb2.Wallet:
        if request.wallet_id not in self._wallets:
            raise WalletError(Reason.NOT_FOUND, "no such wallet", field="wallet_id")
        return self._wallets[request.wallet_id][1]

    async def CreateAccount(self, request: keys_pb2.CreateAccountRequest, context: Any) -> keys_pb2.Account:
        path = AccountPath(Algorithm.ECDSA_SECP256K1, request.account, request.change, request.index)
        place = AccountPlace(request.wallet_id, request.chain_id, path)
        if place.account_id in self._accounts:
            return self._accounts[place.account_id]
        await self.GetWallet(keys_pb2.GetWalletRequest(wallet_id=request.wallet_id), context)
        self._leaves.setdefault((place.key_id, 1), _Leaf(coincurve.PrivateKey(), request.wallet_id, path))
        return self._add_account(place.account_id, request.chain_id, place.key_id)

    async def GetAccount(self, request: keys_pb2.GetAccountRequest, context: Any) -> keys_pb2.Account:
        self.script.begin("GetAccount")
        by = request.WhichOneof("by")
        if by is None:
            refuse("by", "is account_id or address")
        for account in self._accounts.values():
            at = keys_pb2.AccountAddress(chain_id=account.chain_id, address=account.address)
            if (request.account_id == account.account_id) if by == "account_id" else (request.address == at):
                return account
        raise WalletError(Reason.NOT_FOUND, "no such account", field=by)

    async def RegisterTransportKey(
        self, request: keys_pb2.RegisterTransportKeyRequest, context: Any
    ) -> keys_pb2.RegisterTransportKeyResponse:
        _check_is_signer(context)
        check_transport_key(request.public_key_der)
        fingerprint = hashlib.sha256(request.public_key_der).digest()
        if self._transport_keys.setdefault(fingerprint, request) != request:
            raise WalletError(Reason.ALREADY_EXISTS, "registered for another token", field="public_key_der")
        return keys_pb2.RegisterTransportKeyResponse(fingerprint=fingerprint, approved=True)

    async def WrapLeaf(self, request: keys_pb2.WrapLeafRequest, context: Any) -> keys_pb2.WrappedLeaf:
        _check_is_signer(context)
        registered = self._transport_keys.get(request.transport_fingerprint)
        if registered is None:
            raise WalletError(Reason.NOT_FOUND, "the transport key is not registered", field="transport_fingerprint")
        leaf = self._leaves.get((request.key.key_id, request.key.version))
        if leaf is None:
            raise WalletError(Reason.KEY_NOT_FOUND, Reason.KEY_NOT_FOUND.meaning, field="key")
        place = request.key.key_id, request.key.version, request.transport_fingerprint
        if place not in self._wrapped:
            self._wrapped[place] = wrap_leaf(leaf.private_key, registered.public_key_der)
        wrapped_aes_key, wrapped_private_key = self._wrapped[place]
        return keys_pb2.WrappedLeaf(
            key=request.key,
            algorithm=keys_pb2.ALGORITHM_ECDSA_SECP256K1,
            wrapped_aes_key=wrapped_aes_key,
            wrapped_private_key=wrapped_private_key,
            public_key=leaf.public_key,
            derivation_path=str(leaf.path),
            wallet_id=leaf.wallet_id,
            address=address_of_public_key(leaf.public_key),
        )

    def _add_account(self, account_id: str, chain_id: str, key_id: str) -> keys_pb2.Account:
        leaf = self._leaves[key_id, 1]
        account = keys_pb2.Account(
            account_id=account_id,
            wallet_id=leaf.wallet_id,
            chain_id=chain_id,
            algorithm=keys_pb2.ALGORITHM_ECDSA_SECP256K1,
            address=address_of_public_key(leaf.public_key),
            public_key=leaf.public_key,
            derivation_path=str(leaf.path),
        )
        account.key.key_id, account.key.version = key_id, 1
        account.created_at.GetCurrentTime()
        self._accounts[account_id] = account
        return account


def _check_is_signer(context: Any) -> None:
    # Called without a wire there is no certificate.
    if context is not None and caller_identity(context.auth_context()) != "signer":
        raise WalletError(Reason.CALLER_NOT_ALLOWED, "leaf keys are for signers only")
