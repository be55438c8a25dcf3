"""wallet.v1.Signer: messages to domain and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import grpc

from protos.wallet.v1 import common_pb2, signer_pb2, signer_pb2_grpc
from services.core.addresses import Address
from services.core.amounts import parse_chain_id, parse_wei
from services.core.entries import check_link_id
from services.core.errors import WalletError, refuse
from services.runtime.rpc_errors import to_item_error
from services.runtime.telemetry import parse_traceparent
from services.signer.bodies import ClientSignature, Requester
from services.signer.checking import Check, CheckedTerms, Checking, Draft
from services.signer.item import SignedTransaction, SigningRequest
from services.signer.policy import Policy, Terms
from services.signer.policy_document import CHANGE_APPROVALS
from services.signer.policy_versions import PolicyVersions
from services.signer.readiness import Readiness
from services.signer.rules import names_of
from services.signer.signing import Signing

M = TypeVar("M")
T = TypeVar("T")

MAX_ITEMS = 1_000
MAX_KEY_ID = 128
MAX_REQUESTER_TEXT = 512
MAX_SIGNATURE_BASE_BYTES = 4_096
MAX_CAUSE = 256
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Context = grpc.aio.ServicerContext[Any, Any]


class SignerServicer(signer_pb2_grpc.SignerServicer):
    def __init__(
        self, policy_versions: PolicyVersions, signing: Signing, checking: Checking, readiness: Readiness
    ) -> None:
        self._policy_versions = policy_versions
        self._signing = signing
        self._checking = checking
        self._readiness = readiness

    async def CheckPolicy(
        self, request: signer_pb2.CheckPolicyRequest, context: _Context
    ) -> signer_pb2.CheckPolicyResponse:
        checks = _read_items(request.checks, "checks", _check)
        decisions = await self._checking.check(checks)
        return signer_pb2.CheckPolicyResponse(decisions=[_decision(one) for one in decisions])

    async def SignTransaction(
        self, request: signer_pb2.SignTransactionRequest, context: _Context
    ) -> signer_pb2.SignedTransaction:
        (result,) = await self._signing.sign([_signing_request(request)])
        if isinstance(result, WalletError):
            raise result
        return _signed(result)

    async def SignTransactions(
        self, request: signer_pb2.SignTransactionsRequest, context: _Context
    ) -> signer_pb2.SignTransactionsResponse:
        requests = _read_items(request.items, "items", _signing_request)
        return signer_pb2.SignTransactionsResponse(
            results=[
                signer_pb2.SignResult(error=to_item_error(result))
                if isinstance(result, WalletError)
                else signer_pb2.SignResult(signed=_signed(result))
                for result in await self._signing.sign(requests)
            ]
        )

    async def VoidLink(self, request: signer_pb2.VoidLinkRequest, context: _Context) -> signer_pb2.VoidLinkResponse:
        check_link_id(request.transfer_id, "transfer_id")
        if len(request.cause) > MAX_CAUSE:
            refuse("cause", f"has at most {MAX_CAUSE} characters")
        await self._signing.void(request.transfer_id, request.cause)
        return signer_pb2.VoidLinkResponse()

    async def GetPolicy(self, request: signer_pb2.GetPolicyRequest, context: _Context) -> signer_pb2.Policy:
        policy = await self._policy_versions.policy()
        return _policy(policy, self._policy_versions.ignored_file_sha256)

    async def CheckPolicyDocument(
        self, request: signer_pb2.CheckPolicyDocumentRequest, context: _Context
    ) -> signer_pb2.Policy:
        return _policy(self._policy_versions.check_document(request.document))

    async def ActivatePolicy(self, request: signer_pb2.ActivatePolicyRequest, context: _Context) -> signer_pb2.Policy:
        if parse_traceparent(request.traceparent) is None:
            refuse("traceparent", "is a W3C traceparent")
        return _policy(await self._policy_versions.activate(request.document, request.traceparent))

    async def GetSignerStatus(
        self, request: signer_pb2.GetSignerStatusRequest, context: _Context
    ) -> signer_pb2.SignerStatus:
        return signer_pb2.SignerStatus(**(await self._readiness.state())._asdict())


def _policy(policy: Policy, ignored_file_sha256: bytes = b"") -> signer_pb2.Policy:
    return signer_pb2.Policy(
        version=policy.version,
        sha256=policy.sha256,
        document=policy.document,
        ignored_file_sha256=ignored_file_sha256,
        accounts=policy.account_names(),
        changes=signer_pb2.ApprovalRule(
            count=CHANGE_APPROVALS, approvers=names_of(policy.change_approvers), keys=policy.approver_keys
        ),
    )


def _decision(checked: CheckedTerms) -> signer_pb2.PolicyDecision:
    decision, rule = checked.decision, checked.decision.approval
    return signer_pb2.PolicyDecision(
        allowed=decision.allowed,
        rules=decision.rules,
        policy_version=checked.policy.version,
        policy_sha256=checked.policy.sha256,
        evidence_index=checked.evidence_index,
        approval=(
            signer_pb2.ApprovalRule(
                count=rule.needed, valid_s=rule.valid_s, approvers=rule.names, keys=checked.policy.approver_keys
            )
            if rule is not None
            else None
        ),
    )


def _read_items(messages: Iterable[M], field: str, read: Callable[[M], T]) -> list[T]:
    """All of them, or INVALID_REQUEST with the `index` of the first that is malformed."""
    items: list[T] = []
    for place, message in enumerate(messages):
        try:
            items.append(read(message))
        except WalletError as error:
            raise WalletError(error.reason, error.message, **{**error.details, "index": place}) from error
    if not 1 <= len(items) <= MAX_ITEMS:
        refuse(field, f"has 1 to {MAX_ITEMS} items")
    return items


def _signing_request(message: signer_pb2.SignTransactionRequest) -> SigningRequest:
    check_link_id(message.transfer_id, "transfer_id")
    if message.supersedes:
        check_link_id(message.supersedes, "supersedes")
    key_id, key_version = _key(message.key)
    return SigningRequest(
        transfer_id=message.transfer_id,
        unsigned_tx=message.unsigned_tx,
        from_address=_address(message.from_address, "from_address"),
        key_id=key_id,
        key_version=key_version,
        requester=_requester(message.requester),
        traceparent=message.traceparent,
        supersedes=message.supersedes if message.HasField("supersedes") else None,
    )


def _check(message: signer_pb2.PolicyCheck) -> Check:
    check_link_id(message.transfer_id, "transfer_id")
    terms = message.terms
    draft: Draft | None = None
    if message.draft_unsigned_tx:
        key_id, key_version = _key(message.key)
        requester = _requester(message.requester)
        draft = Draft(message.draft_unsigned_tx, key_id, key_version, requester, message.traceparent)
    return Check(
        transfer_id=message.transfer_id,
        from_address=_address(terms.from_address, "terms.from_address"),
        terms=Terms(
            chain_id=parse_chain_id(terms.chain_id, "terms.chain_id"),
            to=_address(terms.to_address, "terms.to_address") if terms.to_address else None,
            value_wei=parse_wei(terms.value_wei, "terms.value_wei"),
            data=terms.data,
        ),
        draft=draft,
    )


def _address(data: bytes, field: str) -> Address:
    if len(data) != 20:
        refuse(field, "has 20 bytes")
    return Address(data)


def _key(key: common_pb2.KeyVersion) -> tuple[str, int]:
    if not 1 <= len(key.key_id) <= MAX_KEY_ID:
        refuse("key.key_id", f"has 1 to {MAX_KEY_ID} characters")
    if key.version < 1:
        refuse("key.version", "counts from 1")
    return key.key_id, key.version


def _requester(requester: common_pb2.Requester) -> Requester:
    for field in ("actor", "source_ip", "client_fingerprint"):
        if len(getattr(requester, field)) > MAX_REQUESTER_TEXT:
            refuse(f"requester.{field}", f"has at most {MAX_REQUESTER_TEXT} characters")
    at = requester.requested_at
    if not 0 < at.seconds < 253_402_300_800 or not 0 <= at.nanos < 1_000_000_000:
        refuse("requester.requested_at", "is a time between 1970 and 9999")
    return Requester(
        actor=requester.actor or None,
        source_ip=requester.source_ip or None,
        client_fingerprint=requester.client_fingerprint or None,
        requested_at=_EPOCH + timedelta(seconds=at.seconds, microseconds=at.nanos // 1000),
        client_signature=_client_signature(requester),
    )


def _client_signature(requester: common_pb2.Requester) -> ClientSignature | None:
    if not requester.HasField("client_signature"):
        return None
    signed = requester.client_signature
    field = "requester.client_signature"
    if signed.key_fingerprint != requester.client_fingerprint:
        refuse(f"{field}.key_fingerprint", "is the requester's client_fingerprint")
    if len(signed.content_sha256) != 32 or len(signed.signature) != 64:
        refuse(field, "has a content_sha256 of 32 and a signature of 64 bytes")
    if len(signed.algorithm) > MAX_REQUESTER_TEXT or len(signed.public_key) > MAX_REQUESTER_TEXT:
        refuse(field, f"has an algorithm and a public_key of at most {MAX_REQUESTER_TEXT}")
    if len(signed.signature_base) > MAX_SIGNATURE_BASE_BYTES:
        refuse(f"{field}.signature_base", f"has at most {MAX_SIGNATURE_BASE_BYTES} bytes")
    return ClientSignature(
        signed.algorithm,
        signed.content_sha256,
        signed.key_fingerprint,
        signed.public_key,
        signed.signature,
        signed.signature_base,
    )


def _signed(result: SignedTransaction) -> signer_pb2.SignedTransaction:
    return signer_pb2.SignedTransaction(
        transfer_id=result.transfer_id,
        raw_tx=result.raw_tx,
        tx_hash=result.tx_hash,
        intent_index=result.intent_index,
        signature_index=result.signature_index,
    )
