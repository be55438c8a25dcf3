"""Approvals as entries of the evidence log: links, ids and bodies; the stored body is appended until it is there."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Link

from services.core.canonical import canonical_json, format_time
from services.core.entries import Kind
from services.core.errors import Code, Reason, WalletError
from services.core.signed_requests import SignedRequest, check_signed_hash, check_signed_request
from services.gateway.approval_rows import Approval, ApprovalRows
from services.gateway.peers import Peers
from services.gateway.telemetry import APPROVAL, tracer
from services.runtime import attributes
from services.runtime.evidence_log import Entry, EvidenceLog, Refused
from services.runtime.telemetry import format_traceparent, stored_context

_log = logging.getLogger(__name__)

_ENTRY_NAME = re.compile(r"[A-Za-z0-9._:-]{1,100}")

APPROVE = "approve"
REJECT = "reject"


def transfer_link(transfer_id: str) -> str:
    return f"{transfer_id}:approval"


def policy_link(document_sha256: bytes) -> str:
    return f"policy:{document_sha256.hex()[:32]}:approval"


def check_signed_approval(
    signed: SignedRequest | None, fingerprint: str, paths: Collection[str], terms_sha256: bytes | None = None
) -> None:
    """What the signer asks of an approval whose approver has a key in the policy, so that it is told at the door.

    Raises:
        WalletError: REQUEST_SIGNATURE_INVALID.
    """
    if signed is None:
        reason = Reason.REQUEST_SIGNATURE_INVALID
        rule = "is there, by the key that the policy names for this approver"
        raise WalletError(reason, "the approval has to be signed", field="Signature", rule=rule)
    check_signed_request(signed, fingerprint, paths)
    if terms_sha256 is not None:
        check_signed_hash(signed, "terms_sha256", terms_sha256)


def make_approval(
    link_id: str,
    approver: str,
    decision: str,
    subject: Mapping[str, str],
    at: datetime,
    expires_at: datetime,
    traceparent: str,
    signed: SignedRequest | None,
) -> Approval:
    """An approval given now, in the trace of what it is about: a span there, linked to the request's."""
    request = trace.get_current_span().get_span_context()
    span = tracer.start_span(
        APPROVAL,
        context=stored_context(traceparent),
        links=[Link(request)] if request.is_valid else [],
        attributes={attributes.WALLET_LINK_ID: link_id},
    )
    span.end()
    context = span.get_span_context()
    body: dict[str, Any] = {
        "act": "approval",
        "approver": approver,
        "at": format_time(at),
        "decision": decision,
        "expires_at": format_time(expires_at),
        **subject,
    }
    if signed is not None:
        body["client_signature"] = signed.document()
    own = format_traceparent(context) if context.trace_id == int(traceparent[3:35], 16) else traceparent
    return Approval(link_id, approver, decision, at, expires_at, own, canonical_json(body))


class ApprovalLog:
    def __init__(self, rows: ApprovalRows, peers: Peers) -> None:
        self._rows = rows
        self._log = EvidenceLog(peers.evidence_log)

    async def append(self, approval: Approval) -> int:
        """The approval's index in the log, which the row does not know yet.

        Raises:
            WalletError: EVIDENCE_UNAVAILABLE; what the log refuses.
        """
        (outcome,) = await self._log.append([_entry(approval)])
        if isinstance(outcome, Refused):
            raise outcome.error
        return outcome

    async def complete(self, approvals: Sequence[Approval]) -> list[Approval]:
        """The approvals that the log has, once it got those that a crash left out. Raises like `append`."""
        complete = [approval for approval in approvals if approval.evidence_index is not None]
        left = [approval for approval in approvals if approval.evidence_index is None]
        entered: list[tuple[Approval, int]] = []
        for approval in left:
            try:
                entered.append((approval, await self.append(approval)))
            except WalletError as error:
                if is_log_down(error):
                    raise
                _log.error("the log refuses an approval", extra={"link_id": approval.link_id, "error": str(error)})
        if entered:
            await self._rows.entered(entered)
        return complete + [approval._replace(evidence_index=index) for approval, index in entered]


def is_log_down(error: WalletError) -> bool:
    """Whether an append may yet succeed."""
    return error.reason.code is Code.UNAVAILABLE


def _entry(approval: Approval) -> Entry:
    trace_id, span_id = approval.traceparent[3:35], approval.traceparent[36:52]
    return Entry(approval.link_id, _entry_id(approval.approver), Kind.POLICY, trace_id, span_id, approval.body)


def _entry_id(approver: str) -> str:
    """One per approver: the log itself keeps the first decision."""
    name = approver if _ENTRY_NAME.fullmatch(approver) else f"sha256:{sha256(approver.encode()).hexdigest()}"
    return f"approval:{name}"
