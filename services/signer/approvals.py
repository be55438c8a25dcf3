"""Approvals as the log has them: read from `evidence`, never from a request, and each checked to the last field.

An approval is an entry of kind `policy`, entry id `approval:…`, in the link `<what>:approval`. Its body has at least:
act "approval"; transfer_id and terms_sha256, or policy_sha256 and proposer; decision (approve, reject); approver;
expires_at. What is malformed, of another link or erased counts for nothing.

The log has them from `gateway`. Where the policy names an approver's key, gateway's word is not enough: the approver's
own signature of the request stands in the body (`client_signature`), and is checked here. A rejection needs none: it
only ever keeps something from being signed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

from protos.wallet.v1 import evidence_pb2, evidence_pb2_grpc
from services.core.canonical import from_hex, parse_canonical, parse_time
from services.core.entries import Kind, Leaf, body_commitment, leaf_hash
from services.core.errors import Code, Reason, WalletError
from services.core.signed_requests import (
    SignedRequest,
    check_signed_hash,
    check_signed_request,
    read_signed_request,
)

_TIMEOUT_S = 5.0
_SIGNED = "client_signature"


class Approval(NamedTuple):
    """Somebody's word about a transfer or a policy document."""

    subject: str  # the transfer id, or empty
    subject_sha256: bytes  # of the transfer's terms, or of the document
    approver: str
    approves: bool
    proposer: str  # of a policy document; else empty
    at: datetime  # the log's clock
    expires_at: datetime
    leaf_hash: bytes
    signed: SignedRequest | None  # by which it was given, where it was signed

    def check_signature(self, fingerprint: str) -> Approval:
        """This approval, no older and no longer valid than the signature says, if the key of `fingerprint` has signed
        it: the approving, of this subject, in these terms.

        Raises:
            WalletError: REQUEST_SIGNATURE_INVALID with the rule.
        """
        if self.signed is None:
            rule = "stands in the approval"
            raise WalletError(Reason.REQUEST_SIGNATURE_INVALID, Reason.REQUEST_SIGNATURE_INVALID.meaning, rule=rule)
        if self.subject:
            paths = {f"/v1/transfers/{self.subject}:approve"}
            check_signed_hash(self.signed, "terms_sha256", self.subject_sha256)
        else:
            paths = {f"/v1/policies/{prefix}{self.subject_sha256.hex()}:approve" for prefix in ("", "0x")}
        times = check_signed_request(self.signed, fingerprint, paths)
        # Entered late, it is as old as its signature.
        expires_at = self.expires_at if times.expires_at is None else min(self.expires_at, times.expires_at)
        return self._replace(at=min(self.at, times.created_at), expires_at=expires_at)


class Quorum(NamedTuple):
    """Whose word is needed: `needed` distinct approvers."""

    needed: int
    valid_s: int | None  # an approval counts for so long after the log has it
    approvers: tuple[str, ...]  # empty is everybody
    askers: frozenset[str]  # who asked may not approve
    keys: Mapping[str, str] = MappingProxyType({})  # by name: the fingerprint of the key that approves

    def may_decide(self, approver: str) -> bool:
        return approver not in self.askers and (not self.approvers or approver in self.approvers)


class ApprovalLog:
    def __init__(self, stub: evidence_pb2_grpc.EvidenceAsyncStub) -> None:
        self._stub = stub

    async def read(self, link_id: str) -> list[Approval]:
        """The well-formed approvals of a link, in the log's order; none if there is no such link.

        Raises:
            WalletError: EVIDENCE_UNAVAILABLE.
        """
        try:
            link = await self._stub.GetLink(evidence_pb2.GetLinkRequest(link_id=link_id), timeout=_TIMEOUT_S)
        except WalletError as error:
            if error.reason in (Reason.NOT_FOUND, Reason.INVALID_REQUEST):
                return []  # no such link, or no name of one
            if error.reason.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.INTERNAL):
                raise WalletError(Reason.EVIDENCE_UNAVAILABLE, Reason.EVIDENCE_UNAVAILABLE.meaning) from error
            raise
        return read_link(link_id, link.entries)


def read_link(link_id: str, entries: Sequence[evidence_pb2.LinkEntry]) -> list[Approval]:
    return [found for entry in entries if (found := _read_entry(link_id, entry)) is not None]


def check_quorum(
    approvals: Sequence[Approval], quorum: Quorum, subject: str, subject_sha256: bytes, now: datetime
) -> list[bytes]:
    """The leaf hashes of the approvals that count, in the log's order, once there are enough of them.

    Raises:
        WalletError: APPROVAL_REJECTED if one who may decide has rejected it; APPROVAL_MISMATCH or APPROVAL_EXPIRED if
            there would be enough, were they not for other terms or over; else APPROVAL_REQUIRED, with the number of
            those that their approvers' keys have not signed, and the rule that the first of them breaks.
    """
    # The log's clock is not behind its own entries: one of ours that was set back revives nothing.
    now = max([now, *(one.at for one in approvals)])
    of_subject = [one for one in approvals if one.subject == subject and quorum.may_decide(one.approver)]
    if any(not one.approves for one in of_subject):
        raise _refusal(Reason.APPROVAL_REJECTED, quorum, 0)
    of_subject, broken_rules = _proven(of_subject, quorum)
    matching = [one for one in of_subject if one.subject_sha256 == subject_sha256]
    counting = [one for one in matching if _is_valid(one, quorum, now)]
    if len(_approvers(counting)) >= quorum.needed:
        return [one.leaf_hash for one in counting]
    reason = Reason.APPROVAL_REQUIRED
    if len(_approvers(matching)) >= quorum.needed:
        reason = Reason.APPROVAL_EXPIRED
    elif len(_approvers(of_subject)) >= quorum.needed:
        reason = Reason.APPROVAL_MISMATCH
    raise _refusal(reason, quorum, len(_approvers(counting)), broken_rules)


def _proven(approvals: Sequence[Approval], quorum: Quorum) -> tuple[list[Approval], list[str]]:
    """Those of approvers without a key and those that are signed; the rules that the others break."""
    proven: list[Approval] = []
    broken_rules: list[str] = []
    for one in approvals:
        fingerprint = quorum.keys.get(one.approver)
        try:
            proven.append(one if fingerprint is None else one.check_signature(fingerprint))
        except WalletError as error:
            broken_rules.append(str(error.details["rule"]))
    return proven, broken_rules


def _is_valid(approval: Approval, quorum: Quorum, now: datetime) -> bool:
    if now >= approval.expires_at:
        return False
    return quorum.valid_s is None or now < approval.at + timedelta(seconds=quorum.valid_s)


def _approvers(approvals: Sequence[Approval]) -> set[str]:
    return {one.approver for one in approvals}


def _refusal(reason: Reason, quorum: Quorum, counting: int, broken_rules: Sequence[str] = ()) -> WalletError:
    details: dict[str, str | int] = {"needed": quorum.needed, "given": counting}
    if broken_rules:
        rule = f"the approver's signature {broken_rules[0]}"
        details |= {"unproven": len(broken_rules), "field": _SIGNED, "rule": rule}
    return WalletError(reason, reason.meaning, **details)


def _read_entry(link_id: str, entry: evidence_pb2.LinkEntry) -> Approval | None:
    try:
        leaf = Leaf.decode(entry.leaf)
        if leaf.kind is not Kind.POLICY or leaf.link_id != link_id or not entry.entry_id.startswith("approval:"):
            return None
        if body_commitment(entry.salt, entry.body) != leaf.body:
            return None
        return _approval(parse_canonical(entry.body), leaf.at, leaf_hash(entry.leaf))
    except (WalletError, KeyError, TypeError, AttributeError):
        return None


def _approval(body: dict[str, Any], at: datetime, leaf: bytes) -> Approval | None:
    if body["act"] != "approval" or body["decision"] not in ("approve", "reject"):
        return None
    of_transfer = "transfer_id" in body
    approver = body["approver"]
    texts = [approver, body["transfer_id"]] if of_transfer else [approver, body["proposer"]]
    if any(type(text) is not str or not text for text in texts):
        return None
    subject_sha256 = from_hex(body["terms_sha256" if of_transfer else "policy_sha256"])
    if len(subject_sha256) != 32:
        return None
    return Approval(
        subject=body["transfer_id"] if of_transfer else "",
        subject_sha256=subject_sha256,
        approver=approver,
        approves=body["decision"] == "approve",
        proposer="" if of_transfer else body["proposer"],
        at=at,
        expires_at=parse_time(body["expires_at"]),
        leaf_hash=leaf,
        signed=_signed(body),
    )


def _signed(body: dict[str, Any]) -> SignedRequest | None:
    """None also for what is no signature: it proves as much."""
    try:
        return read_signed_request(body[_SIGNED])
    except (KeyError, WalletError):
        return None
