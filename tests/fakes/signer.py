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
APPROVED_VALUE_WEI = 10**18
RULE = "value ≤ limit"
_POLICY = signer_pb2.Policy(version=3, sha256=hashlib.sha256(b"version: 3\n").digest(), document=b"version: 3\n")


class FakeSigner(signer_pb2_grpc.SignerServicer):
    """A value of DENIED_VALUE_WEI or more is against the policy; one of APPROVED_VALUE_WEI or more wants `approval`."""

    def __init__(self) -> None:
        self.script = Script()
        # The first request of each link, and each further one that was signed: its fee bumps.
        self.signed: dict[str, signer_pb2.SignTransactionRequest] = {}
        self.bumped: dict[str, list[signer_pb2.SignTransactionRequest]] = {}
        self.denied_value_wei = int(DENIED_VALUE_WEI)
        self.approval: signer_pb2.ApprovalRule | None = None
        self.policy = _POLICY
        self.activations: list[signer_pb2.ActivatePolicyRequest] = []
        # Link → the link that supersedes it.
        self.superseded: dict[str, str] = {}
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
            allowed = int(check.terms.value_wei) < self.denied_value_wei
            decision = reply.decisions.add(
                allowed=allowed, rules=[RULE], policy_version=_POLICY.version, policy_sha256=_POLICY.sha256
            )
            if allowed and self.approval is not None and int(check.terms.value_wei) >= APPROVED_VALUE_WEI:
                decision.approval.CopyFrom(self.approval)
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
        self.superseded = {link: by for link, by in self.superseded.items() if by != request.transfer_id}
        await self.script.end("VoidLink")
        return signer_pb2.VoidLinkResponse()

    async def GetPolicy(self, request: signer_pb2.GetPolicyRequest, context: Any) -> signer_pb2.Policy:
        return self.policy

    async def CheckPolicyDocument(
        self, request: signer_pb2.CheckPolicyDocumentRequest, context: Any
    ) -> signer_pb2.Policy:
        self.script.begin("CheckPolicyDocument")
        return _read_policy(request.document)

    async def ActivatePolicy(self, request: signer_pb2.ActivatePolicyRequest, context: Any) -> signer_pb2.Policy:
        self.script.begin("ActivatePolicy")
        self.activations.append(request)
        self.policy = _read_policy(request.document)
        await self.script.end("ActivatePolicy")
        return self.policy

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
            if link_id in self.denials or tx.value_wei >= self.denied_value_wei:
                raise WalletError(Reason.POLICY_DENIED, Reason.POLICY_DENIED.meaning, rule=RULE)
            if request.HasField("supersedes"):
                self._check_superseding(request, tx)
            elif self._holders.setdefault((tx.chain_id, request.from_address, tx.nonce), link_id) != link_id:
                raise WalletError(Reason.NONCE_REGISTERED, Reason.NONCE_REGISTERED.meaning)
            self.signed[link_id] = request
        known = [self.signed[link_id], *self.bumped.get(link_id, [])]
        if all(one.unsigned_tx != request.unsigned_tx for one in known):
            self._check_bump(request, tx)
            self.bumped.setdefault(link_id, []).append(request)
        raw_tx = request.unsigned_tx + b":signed"
        return signer_pb2.SignedTransaction(
            transfer_id=link_id,
            raw_tx=raw_tx,
            tx_hash=tx_hash(raw_tx),
            intent_index=self._index(f"{link_id} intent"),
            signature_index=self._index(f"{link_id} signature"),
        )

    def _check_superseding(self, request: signer_pb2.SignTransactionRequest, tx: UnsignedTransaction) -> None:
        if (tx.to, tx.value_wei, tx.data) != (request.from_address, 0, b""):
            refuse("unsigned_tx", "moves nothing, from the sender to itself")
        holder = self._holders.get((tx.chain_id, request.from_address, tx.nonce), "")
        live = holder if holder not in self.voided else ""
        if request.supersedes != live:
            raise WalletError(Reason.NONCE_REGISTERED, Reason.NONCE_REGISTERED.meaning, field="supersedes")
        self.superseded[request.supersedes] = request.transfer_id

    def _check_bump(self, request: signer_pb2.SignTransactionRequest, tx: UnsignedTransaction) -> None:
        if request.transfer_id in self.superseded:
            raise WalletError(Reason.SUPERSEDED, Reason.SUPERSEDED.meaning)
        first = decode_unsigned(self.signed[request.transfer_id].unsigned_tx)
        if (tx.nonce, tx.to, tx.value_wei, tx.data) != (first.nonce, first.to, first.value_wei, first.data):
            raise WalletError(Reason.ALREADY_EXISTS, "registered for another transaction", field="unsigned_tx")

    def _index(self, entry: str) -> int:
        """Where this entry would be in the log."""
        return self._indexes.setdefault(entry, len(self._indexes))


def _read_policy(document: bytes) -> signer_pb2.Policy:
    """A document of one line, `version: N`."""
    version = document.decode().removeprefix("version: ").strip()
    if not version.isdecimal():
        refuse("policy.version", "is a whole number")
    return signer_pb2.Policy(version=int(version), sha256=hashlib.sha256(document).digest(), document=document)


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
