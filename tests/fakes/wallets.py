"""Wallets and accounts in memory; addresses are made up from their path."""

from __future__ import annotations

import hashlib
from typing import Any

from protos.wallet.v1 import keys_pb2, keys_pb2_grpc
from services.core.errors import Reason, WalletError
from tests.fakes.script import Script


class FakeWallets(keys_pb2_grpc.KeysServicer):
    def __init__(self) -> None:
        self.script = Script()
        self.wallets: dict[str, keys_pb2.Wallet] = {}
        self.accounts: dict[str, keys_pb2.Account] = {}

    def add_account(self, account_id: str, chain_id: str = "eip155:31337") -> keys_pb2.Account:
        account = keys_pb2.Account(
            account_id=account_id,
            wallet_id="treasury",
            chain_id=chain_id,
            algorithm=keys_pb2.ALGORITHM_ECDSA_SECP256K1,
            address=hashlib.sha256(account_id.encode()).digest()[:20],
            public_key=b"\x02" * 33,
            derivation_path="m/44'/60'/0'/0/0",
        )
        account.key.key_id, account.key.version = f"key-{account_id}", 1
        account.created_at.GetCurrentTime()
        self.accounts[account_id] = account
        return account

    async def CreateWallet(self, request: keys_pb2.CreateWalletRequest, context: Any) -> keys_pb2.Wallet:
        self.script.begin("CreateWallet")
        wallet = keys_pb2.Wallet(wallet_id=request.wallet_id, name=request.name)
        if request.recovery_recipient:
            wallet.encrypted_recovery = b"sealed"
        wallet.created_at.GetCurrentTime()
        return self.wallets.setdefault(request.wallet_id, wallet)

    async def GetWallet(self, request: keys_pb2.GetWalletRequest, context: Any) -> keys_pb2.Wallet:
        if request.wallet_id not in self.wallets:
            raise WalletError(Reason.NOT_FOUND, "no such wallet", field="wallet_id")
        return self.wallets[request.wallet_id]

    async def CreateAccount(self, request: keys_pb2.CreateAccountRequest, context: Any) -> keys_pb2.Account:
        await self.GetWallet(keys_pb2.GetWalletRequest(wallet_id=request.wallet_id), context)
        return self.add_account(f"{request.wallet_id}.{request.account}.{request.index}", request.chain_id)

    async def GetAccount(self, request: keys_pb2.GetAccountRequest, context: Any) -> keys_pb2.Account:
        self.script.begin("GetAccount")
        for account in self.accounts.values():
            by_address = (account.chain_id, account.address) == (request.address.chain_id, request.address.address)
            if request.account_id == account.account_id or by_address:
                return account
        raise WalletError(Reason.NOT_FOUND, "no such account", field="account_id")
