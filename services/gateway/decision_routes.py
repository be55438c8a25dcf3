"""Routes by which people decide: cancelling, approving and rejecting transfers, and changing the policy."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from services.core.errors import Reason, WalletError
from services.gateway.access import Approver, Operator, Reader, Staff, client_of, signed_request_of
from services.gateway.approval_log import APPROVE, REJECT
from services.gateway.problems import TRACEPARENT_KEY
from services.gateway.requests import ApprovalRequest, PolicyRequest
from services.gateway.routing import ResourceId, StrictRoute, gateway_of, json_response
from services.gateway.views import (
    ApprovalView,
    PolicyDecisionView,
    ProposalListView,
    ProposalView,
    TransferApprovalsView,
    TransferView,
    approval_view,
    policy_decision_view,
    proposal_view,
    transfer_approvals_view,
)

PolicyHash = Annotated[str, Path(pattern=r"^(0x)?[0-9a-f]{64}$", description="SHA-256 of the proposed document, hex.")]

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/transfers/{id}:cancel", status_code=202, response_model=TransferView, tags=["transfers"])
async def cancel_transfer(request: Request, id: ResourceId, credential: Operator) -> Response:
    """Before a signature it fails, with TRANSFER_CANCELLED. After, a transfer `<id>:cancel` is made to supersede it:
    whichever of the two is mined, the other never is. Repeated, it answers the same, or makes another
    (`<id>:cancel.1`, …) where that one failed before it was signed. What is in a block is refused."""
    transfer = await gateway_of(request).cancellation.cancel(id, client_of(request, credential))
    trace = {"traceparent": transfer.traceparent, "X-Trace-ID": transfer.trace_id}
    return json_response(
        gateway_of(request).view(transfer), 202, {"Location": f"/v1/transfers/{transfer.transfer_id}", **trace}
    )


@router.post("/v1/transfers/{id}:approve", response_model=ApprovalView, tags=["approvals"])
async def approve_transfer(request: Request, id: ResourceId, body: ApprovalRequest, credential: Approver) -> Response:
    """Approve a transfer in AWAITING_APPROVAL. Repeated, it answers the same. Signed, the approval keeps the signature;
    an approver whose key the policy names has to sign."""
    return json_response(await _decide_transfer(request, id, body, credential.name, APPROVE))


@router.post("/v1/transfers/{id}:reject", response_model=ApprovalView, tags=["approvals"])
async def reject_transfer(request: Request, id: ResourceId, body: ApprovalRequest, credential: Approver) -> Response:
    """Reject a transfer in AWAITING_APPROVAL: it fails. Repeated, it answers the same."""
    return json_response(await _decide_transfer(request, id, body, credential.name, REJECT))


async def _decide_transfer(
    request: Request, transfer_id: str, body: ApprovalRequest, approver: str, decision: str
) -> ApprovalView:
    signed = await signed_request_of(request)
    approvals = gateway_of(request).approvals
    return approval_view(await approvals.decide(transfer_id, approver, decision, body.terms_sha256, signed))


@router.get("/v1/transfers/{id}/approvals", response_model=TransferApprovalsView, tags=["approvals"])
async def read_approvals(request: Request, id: ResourceId, credential: Reader) -> Response:
    """What the policy asks for, and what was decided."""
    gateway = gateway_of(request)
    transfer = await gateway.store.transfer(id)
    if transfer is None:
        raise WalletError(Reason.NOT_FOUND, "no such transfer", field="id", rule="names a transfer")
    return json_response(transfer_approvals_view(transfer, await gateway.approvals.of(id)))


@router.post("/v1/policies", status_code=201, response_model=ProposalView, tags=["policies"])
async def propose_policy(request: Request, body: PolicyRequest, credential: Staff) -> Response:
    """Propose a policy; two approvers besides the proposer put it in force. The same document is the same proposal."""
    changes = gateway_of(request).policy_changes
    change = await changes.propose(body.document, credential.name, request.scope[TRACEPARENT_KEY])
    return json_response(proposal_view(change), 201)


@router.get("/v1/policies", response_model=ProposalListView, tags=["policies"])
async def list_policies(
    request: Request, credential: Reader, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> Response:
    """Proposed policies, newest first."""
    changes = await gateway_of(request).policy_changes.newest(limit)
    return json_response(ProposalListView(policies=[proposal_view(change) for change in changes]))


@router.post("/v1/policies/{sha256}:approve", response_model=PolicyDecisionView, tags=["policies"])
async def approve_policy(request: Request, sha256: PolicyHash, credential: Approver) -> Response:
    """Approve a proposed policy. Repeated, the approval is the same one. Who may, and whose approval has to be signed,
    the policy in force says (`changes.approvers`)."""
    return json_response(await _decide_policy(request, sha256, credential.name, APPROVE))


@router.post("/v1/policies/{sha256}:reject", response_model=PolicyDecisionView, tags=["policies"])
async def reject_policy(request: Request, sha256: PolicyHash, credential: Approver) -> Response:
    """Reject a proposed policy. Repeated, the rejection is the same one."""
    return json_response(await _decide_policy(request, sha256, credential.name, REJECT))


async def _decide_policy(request: Request, sha256: str, approver: str, decision: str) -> PolicyDecisionView:
    name = bytes.fromhex(sha256.removeprefix("0x"))
    signed = await signed_request_of(request)
    approval, change = await gateway_of(request).policy_changes.decide(name, approver, decision, signed)
    return policy_decision_view(approval, change)
