"""`wallet.v1.Keys` ⇄ domain."""

from __future__ import annotations

from typing import Any

import grpc
from opentelemetry import trace

from protos.wallet.v1 import common_pb2, keys_pb2, keys_pb2_grpc
from services.core.errors import Reason, WalletError, refuse
from services.core.paths import AccountPath, Algorithm
from services.keys.accounts import AccountPlace, Accounts
from services.keys.leaves import Leaves
from services.keys.sealing_key import SealingKey
from services.keys.store import AccountRow, WalletRow
from services.keys.wallets import NewWallet, Wallets
from services.runtime import attributes
from services.runtime.mtls import caller_identity

Context = grpc.aio.ServicerContext[Any, Any]

_FROM_PROTO = {
    keys_pb2.ALGORITHM_UNSPECIFIED: Algorithm.ECDSA_SECP256K1,
    keys_pb2.ALGORITHM_ECDSA_SECP256K1: Algorithm.ECDSA_SECP256K1,
    keys_pb2.ALGORITHM_ED25519: Algorithm.ED25519,
}
_TO_PROTO = {
    Algorithm.ECDSA_SECP256K1: keys_pb2.ALGORITHM_ECDSA_SECP256K1,
    Algorithm.ED25519: keys_pb2.ALGORITHM_ED25519,
}


class KeysServicer(keys_pb2_grpc.KeysServicer):
    def __init__(self, wallets: Wallets, accounts: Accounts, leaves: Leaves, sealing_key: SealingKey) -> None:
        self._sealing_key = sealing_key
        self._wallets = wallets
        self._accounts = accounts
        self._leaves = leaves

    async def CreateWallet(self, request: keys_pb2.CreateWalletRequest, context: Context) -> keys_pb2.Wallet:
        wanted = NewWallet(request.wallet_id, request.name, request.strength_bits, request.recovery_recipient)
        trace.get_current_span().set_attribute(attributes.WALLET_ID, wanted.wallet_id)
        return _wallet_message(await self._wallets.create(wanted))

    async def GetWallet(self, request: keys_pb2.GetWalletRequest, context: Context) -> keys_pb2.Wallet:
        return _wallet_message(await self._wallets.get(request.wallet_id))

    async def CreateAccount(self, request: keys_pb2.CreateAccountRequest, context: Context) -> keys_pb2.Account:
        path = AccountPath(_algorithm(request.algorithm), request.account, request.change, request.index)
        place = AccountPlace(request.wallet_id, request.chain_id, path)
        account = await self._accounts.create(place)
        _describe(account)
        return _account_message(account)

    async def GetAccount(self, request: keys_pb2.GetAccountRequest, context: Context) -> keys_pb2.Account:
        by = request.WhichOneof("by")
        if by is None:
            refuse("by", "is account_id or address")
        if by == "account_id":
            account = await self._accounts.get(request.account_id)
        else:
            account = await self._accounts.get_by_address(request.address.chain_id, request.address.address)
        return _account_message(account)

    async def GetKeysStatus(self, request: keys_pb2.GetKeysStatusRequest, context: Context) -> keys_pb2.KeysStatus:
        try:
            await self._sealing_key.check()
        except WalletError as error:
            return keys_pb2.KeysStatus(token_ready=False, missing=[f"keys: {error.reason.meaning}"])
        return keys_pb2.KeysStatus(token_ready=True)

    async def RegisterTransportKey(
        self, request: keys_pb2.RegisterTransportKeyRequest, context: Context
    ) -> keys_pb2.RegisterTransportKeyResponse:
        _check_is_signer(context)
        fingerprint, approved = await self._leaves.register(
            request.public_key_der, request.token_label, request.token_serial
        )
        return keys_pb2.RegisterTransportKeyResponse(fingerprint=fingerprint, approved=approved)

    async def WrapLeaf(self, request: keys_pb2.WrapLeafRequest, context: Context) -> keys_pb2.WrappedLeaf:
        _check_is_signer(context)
        account, leaf = await self._leaves.wrap(request.key.key_id, request.key.version, request.transport_fingerprint)
        _describe(account)
        return keys_pb2.WrappedLeaf(
            key=request.key,
            algorithm=_TO_PROTO[account.path.algorithm],
            wrapped_aes_key=leaf.wrapped_aes_key,
            wrapped_private_key=leaf.wrapped_private_key,
            public_key=account.public_key,
            derivation_path=str(account.path),
            wallet_id=account.wallet_id,
            address=account.address,
        )


def _check_is_signer(context: Context) -> None:
    """Gateway may call keys, and must never come near a leaf key."""
    caller = caller_identity(context.auth_context())
    if caller != "signer":
        raise WalletError(Reason.CALLER_NOT_ALLOWED, "leaf keys are for signers only", caller=caller)


def _algorithm(value: keys_pb2.Algorithm.ValueType) -> Algorithm:
    if value not in _FROM_PROTO:
        refuse("algorithm", "is a known algorithm")
    return _FROM_PROTO[value]


def _describe(account: AccountRow) -> None:
    span = trace.get_current_span()
    span.set_attribute(attributes.WALLET_ID, account.wallet_id)
    span.set_attribute(attributes.WALLET_ACCOUNT_PATH, str(account.path))
    span.set_attribute(attributes.WALLET_HD_INDEX, account.path.index)


def _wallet_message(wallet: WalletRow) -> keys_pb2.Wallet:
    message = keys_pb2.Wallet(
        wallet_id=wallet.wallet_id, name=wallet.name, encrypted_recovery=wallet.encrypted_recovery
    )
    message.created_at.FromDatetime(wallet.created_at)
    return message


def _account_message(account: AccountRow) -> keys_pb2.Account:
    message = keys_pb2.Account(
        account_id=account.account_id,
        wallet_id=account.wallet_id,
        chain_id=account.chain_id,
        algorithm=_TO_PROTO[account.path.algorithm],
        address=account.address,
        public_key=account.public_key,
        key=common_pb2.KeyVersion(key_id=account.key_id, version=account.key_version),
        derivation_path=str(account.path),
    )
    message.created_at.FromDatetime(account.created_at)
    return message
