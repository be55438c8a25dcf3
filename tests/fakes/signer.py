"""A signer without a token: a link signs one transaction, a nonce belongs to one link, and one rule is the policy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from protos.wallet.v1 import signer_pb2, signer_pb2_grpc
from services.core.errors import Reason, WalletError, refuse
from services.core.transactions import UnsignedTransaction, decode_unsigned, tx_hash
from services.runtime.rpc_errors import to_item_error
from services.runtime.telemetry import parse_traceparent
from tests.fakes.script import Script

T = TypeVar("T")

# One wei above what the development policy allows for a transfer.
DENIED_VALUE_WEI = str(1_000 * 10**18 + 1)
RULE = "value ≤ limit"
_POLICY = signer_pb2.Policy(version=3, sha256=hashlib.sha256(b"version: 3\n").digest(), document=b"version: 3\n")


class FakeSigner(signer_pb2_grpc.SignerServicer):
    """A value of DENIED_VALUE_WEI or more is against the policy."""

    def __init__(self) -> None:
        self.script = Script()
        self.signed: dict[str, signer_pb2.SignTransactionRequest] = {}
        self.voided: set[str] = set()
        self.denials: dict[str, signer_pb2.PolicyCheck] = {}
        self.missing: list[str] = []
        self._holders: dict[tuple[int, bytes, int], str] = {}
        self._indexes: dict[str, int] = {}

    async def CheckPolicy(self, request: signer_pb2.CheckPolicyRequest, context: Any) -> signer_pb2.CheckPolicyResponse:
        self.script.begin("CheckPolicy")
        _each(request.checks, _check_draft)
        reply = signer_pb2.CheckPolicyResponse()
        for check in request.checks:
            allowed = int(check.terms.value_wei) < int(DENIED_VALUE_WEI)
            decision = reply.decisions.add(
                allowed=allowed, rules=[RULE], policy_version=_POLICY.version, policy_sha256=_POLICY.sha256
            )
            if not allowed and check.draft_unsigned_tx:
                self.denials.setdefault(check.transfer_id, check)
                decision.evidence_index = self._index(f"{check.transfer_id} intent")
        await self.script.end("CheckPolicy")
        return reply

    async def SignTransaction(
        self, request: signer_pb2.SignTransactionRequest, context: Any
    ) -> signer_pb2.SignedTransaction:
        self.script.begin("SignTransaction")
        (tx,) = _each([request], _decode)
        signed = self._sign(request, tx)
        await self.script.end("SignTransaction")
        return signed

    async def SignTransactions(
        self, request: signer_pb2.SignTransactionsRequest, context: Any
    ) -> signer_pb2.SignTransactionsResponse:
        self.script.begin("SignTransactions")
        reply = signer_pb2.SignTransactionsResponse()
        decoded = _each(request.items, _decode)
        if len({item.transfer_id for item in request.items}) < len(decoded):
            refuse("transfer_id", "is there once in a batch")
        for item, tx in zip(request.items, decoded, strict=True):
            try:
                reply.results.add(signed=self._sign(item, tx))
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
        return _POLICY

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
            token_label="fake",
            workers=1,
        )

    def _sign(
        self, request: signer_pb2.SignTransactionRequest, tx: UnsignedTransaction
    ) -> signer_pb2.SignedTransaction:
        link_id = request.transfer_id
        if link_id in self.voided:
            raise WalletError(Reason.LINK_VOIDED, Reason.LINK_VOIDED.meaning)
        if link_id not in self.signed:
            if link_id in self.denials or tx.value_wei >= int(DENIED_VALUE_WEI):
                raise WalletError(Reason.POLICY_DENIED, Reason.POLICY_DENIED.meaning, rule=RULE)
            if self._holders.setdefault((tx.chain_id, request.from_address, tx.nonce), link_id) != link_id:
                raise WalletError(Reason.NONCE_REGISTERED, Reason.NONCE_REGISTERED.meaning)
            self.signed[link_id] = request
        if self.signed[link_id].unsigned_tx != request.unsigned_tx:
            raise WalletError(Reason.ALREADY_EXISTS, "registered for another transaction", field="unsigned_tx")
        raw_tx = request.unsigned_tx + b":signed"
        return signer_pb2.SignedTransaction(
            transfer_id=link_id,
            raw_tx=raw_tx,
            tx_hash=tx_hash(raw_tx),
            intent_index=self._index(f"{link_id} intent"),
            signature_index=self._index(f"{link_id} signature"),
        )

    def _index(self, entry: str) -> int:
        """Where this entry would be in the log."""
        return self._indexes.setdefault(entry, len(self._indexes))


def _each(messages: Iterable[Any], read: Callable[[Any], T]) -> list[T]:
    """All of them, or the refusal of the first that is malformed, with its index."""
    items = []
    for place, message in enumerate(messages):
        try:
            items.append(read(message))
        except WalletError as error:
            raise WalletError(error.reason, error.message, **{**error.details, "index": place}) from None
    return items


def _decode(request: signer_pb2.SignTransactionRequest) -> UnsignedTransaction:
    if parse_traceparent(request.traceparent) is None:
        refuse("traceparent", "is a W3C traceparent")
    return decode_unsigned(request.unsigned_tx)


def _check_draft(check: signer_pb2.PolicyCheck) -> None:
    if check.draft_unsigned_tx:
        tx, terms = decode_unsigned(check.draft_unsigned_tx), check.terms
        if (tx.to or b"", str(tx.value_wei), tx.data) != (terms.to_address, terms.value_wei, terms.data):
            refuse("draft_unsigned_tx", "does what the terms say")
