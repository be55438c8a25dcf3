"""A signer without a token: the first unsigned transaction of a transfer is the only one it ever signs."""

from __future__ import annotations

import hashlib
from typing import Any

from protos.wallet.v1 import signer_pb2, signer_pb2_grpc
from services.core.errors import Reason, WalletError
from services.runtime.rpc_errors import to_item_error
from tests.fakes.script import Script

DENIED_VALUE_WEI = "666"


class FakeSigner(signer_pb2_grpc.SignerServicer):
    """A value of DENIED_VALUE_WEI is against the policy."""

    def __init__(self) -> None:
        self.script = Script()
        self.signed: dict[str, signer_pb2.SignTransactionRequest] = {}
        self.voided: set[str] = set()
        self.denials: dict[str, signer_pb2.PolicyCheck] = {}
        self.checks: list[signer_pb2.PolicyCheck] = []
        self.missing: list[str] = []

    async def CheckPolicy(self, request: signer_pb2.CheckPolicyRequest, context: Any) -> signer_pb2.CheckPolicyResponse:
        self.script.begin("CheckPolicy")
        reply = signer_pb2.CheckPolicyResponse()
        for check in request.checks:
            self.checks.append(check)
            allowed = check.terms.value_wei != DENIED_VALUE_WEI
            if not allowed and check.draft_unsigned_tx:
                self.denials[check.transfer_id] = check
            reply.decisions.add(allowed=allowed, rules=["value ≤ limit"], policy_version=3)
        await self.script.end("CheckPolicy")
        return reply

    async def SignTransaction(
        self, request: signer_pb2.SignTransactionRequest, context: Any
    ) -> signer_pb2.SignedTransaction:
        self.script.begin("SignTransaction")
        signed = self._sign(request)
        await self.script.end("SignTransaction")
        return signed

    async def SignTransactions(
        self, request: signer_pb2.SignTransactionsRequest, context: Any
    ) -> signer_pb2.SignTransactionsResponse:
        self.script.begin("SignTransactions")
        reply = signer_pb2.SignTransactionsResponse()
        for item in request.items:
            try:
                reply.results.add(signed=self._sign(item))
            except WalletError as error:
                reply.results.add(error=to_item_error(error))
        await self.script.end("SignTransactions")
        return reply

    async def VoidLink(self, request: signer_pb2.VoidLinkRequest, context: Any) -> signer_pb2.VoidLinkResponse:
        self.script.begin("VoidLink")
        if request.transfer_id in self.signed:
            raise WalletError(Reason.ALREADY_SIGNED, Reason.ALREADY_SIGNED.meaning)
        self.voided.add(request.transfer_id)
        await self.script.end("VoidLink")
        return signer_pb2.VoidLinkResponse()

    async def GetPolicy(self, request: signer_pb2.GetPolicyRequest, context: Any) -> signer_pb2.Policy:
        return signer_pb2.Policy(version=3, sha256=bytes(32), document=b"version: 3\n")

    async def GetSignerStatus(
        self, request: signer_pb2.GetSignerStatusRequest, context: Any
    ) -> signer_pb2.SignerStatus:
        self.script.begin("GetSignerStatus")
        ready = not self.missing
        return signer_pb2.SignerStatus(
            token_ready=ready,
            evidence_ready=True,
            database_ready=True,
            transport_key_approved=True,
            missing=self.missing,
        )

    def _sign(self, request: signer_pb2.SignTransactionRequest) -> signer_pb2.SignedTransaction:
        if request.transfer_id in self.voided:
            raise WalletError(Reason.LINK_VOIDED, Reason.LINK_VOIDED.meaning)
        first = self.signed.setdefault(request.transfer_id, request)
        if first.unsigned_tx != request.unsigned_tx:
            raise WalletError(Reason.NONCE_REGISTERED, "another unsigned transaction of this link is signed")
        raw_tx = request.unsigned_tx + b":signed"
        return signer_pb2.SignedTransaction(
            transfer_id=request.transfer_id, raw_tx=raw_tx, tx_hash=hashlib.sha256(raw_tx).digest()
        )
