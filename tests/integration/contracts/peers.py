"""The peers that a contract is tested against, by their generated stubs alone, and the steps that lead up to a test."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from protos.wallet.v1 import (
    broadcaster_pb2,
    broadcaster_pb2_grpc,
    common_pb2,
    evidence_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    signer_pb2,
    signer_pb2_grpc,
    tracestore_pb2_grpc,
    txbuilder_pb2,
    txbuilder_pb2_grpc,
)
from services.core.errors import WalletError
from services.runtime.channel import PeerChannel
from services.runtime.settings import ServiceSettings
from services.runtime.telemetry import new_traceparent

CHAIN_ID = "eip155:31337"
RECEIVER = bytes.fromhex("11" * 20)

Account = keys_pb2.Account
Built = txbuilder_pb2.BuiltTransaction


@dataclass
class Peers:
    """Stubs, as the gateway has them; `leaves` are those of `keys` as a signer has them."""

    keys: Any
    leaves: Any
    txbuilder: Any
    signer: Any
    broadcaster: Any
    evidence: Any
    tracestore: Any
    otlp: Any
    # Give an address ten ether; let the chain finalize a submission, if it does not by itself.
    fund: Callable[[bytes], Awaitable[None]]
    finalize: Callable[[str], Awaitable[None]]

    async def account(self) -> Account:
        """The first of a new wallet, with ten ether."""
        wallet_id = unique("w")
        await self.keys.CreateWallet(keys_pb2.CreateWalletRequest(wallet_id=wallet_id, name="contract"))
        account: Account = await self.keys.CreateAccount(
            keys_pb2.CreateAccountRequest(wallet_id=wallet_id, chain_id=CHAIN_ID)
        )
        await self.fund(account.address)
        return account

    async def built(self, account: Account, value_wei: str = "1") -> Built:
        built: Built = await self.txbuilder.BuildTransaction(build_request(account, value_wei))
        return built

    async def signed(self, account: Account) -> broadcaster_pb2.SubmitTransactionRequest:
        """A transaction that is ready to be submitted."""
        built = await self.built(account)
        request = sign_request(account, built)
        return submit_request(account, built, request, await self.signer.SignTransaction(request))


def unique(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(8)}"


def terms(account: Account, value_wei: str = "1") -> common_pb2.Terms:
    return common_pb2.Terms(
        chain_id=account.chain_id, from_address=account.address, to_address=RECEIVER, value_wei=value_wei
    )


def build_request(account: Account, value_wei: str = "1") -> txbuilder_pb2.BuildTransactionRequest:
    """Of a new transfer."""
    return txbuilder_pb2.BuildTransactionRequest(transfer_id=unique("t"), terms=terms(account, value_wei))


def sign_request(account: Account, built: Built) -> signer_pb2.SignTransactionRequest:
    return signer_pb2.SignTransactionRequest(
        transfer_id=built.transfer_id,
        unsigned_tx=built.unsigned_tx,
        from_address=account.address,
        key=account.key,
        requester=requester(),
        traceparent=new_traceparent(),
    )


def submit_request(
    account: Account, built: Built, asked: signer_pb2.SignTransactionRequest, signed: signer_pb2.SignedTransaction
) -> broadcaster_pb2.SubmitTransactionRequest:
    return broadcaster_pb2.SubmitTransactionRequest(
        transfer_id=built.transfer_id,
        chain_id=account.chain_id,
        from_address=account.address,
        nonce=built.nonce,
        raw_tx=signed.raw_tx,
        traceparent=asked.traceparent,
    )


def requester() -> common_pb2.Requester:
    made = common_pb2.Requester(actor="contract")
    made.requested_at.GetCurrentTime()
    return made


async def refusal(call: Awaitable[Any]) -> tuple[str, str]:
    """(reason, field) of the WalletError that the call ends in."""
    with pytest.raises(WalletError) as raised:
        await call
    return raised.value.reason.name, str(raised.value.details.get("field", ""))


async def refused_at(call: Awaitable[Any]) -> str:
    """The `index` that a batch's refusal names."""
    with pytest.raises(WalletError) as raised:
        await call
    return str(raised.value.details.get("index"))


@asynccontextmanager
async def calling(
    addresses: dict[str, str],
    tls_dir: Callable[[str], Path],
    fund: Callable[[bytes], Awaitable[None]],
    finalize: Callable[[str], Awaitable[None]],
) -> AsyncIterator[Peers]:
    """Channels with the certificates of gateway and, for leaf keys, of signer."""
    async with contextlib.AsyncExitStack() as stack:

        def channel(peer: str, caller: str = "gateway") -> Any:
            opened = PeerChannel(peer, ServiceSettings(tls_dir=tls_dir(caller), peers=addresses))
            stack.push_async_callback(opened.close)
            return opened

        tracestore = channel("tracestore")
        yield Peers(
            keys=keys_pb2_grpc.KeysStub(channel("keys")),
            leaves=keys_pb2_grpc.KeysStub(channel("keys", "signer")),
            txbuilder=txbuilder_pb2_grpc.TxBuilderStub(channel("txbuilder")),
            signer=signer_pb2_grpc.SignerStub(channel("signer")),
            broadcaster=broadcaster_pb2_grpc.BroadcasterStub(channel("broadcaster")),
            evidence=evidence_pb2_grpc.EvidenceStub(channel("evidence")),
            tracestore=tracestore_pb2_grpc.TraceStoreStub(tracestore),
            otlp=trace_service_pb2_grpc.TraceServiceStub(tracestore),
            fund=fund,
            finalize=finalize,
        )


async def nothing(_: object) -> None:
    await asyncio.sleep(0)
