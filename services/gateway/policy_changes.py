"""Changes of the policy: proposed by one, approved by two others, each on the record, then put in force by the signer.

The signer reads the approvals from the log for itself; what is counted here only decides when it is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from protos.wallet.v1 import keys_pb2, signer_pb2
from services.core.canonical import to_hex
from services.core.errors import Code, Reason, WalletError, refuse
from services.core.signed_requests import SignedRequest
from services.gateway.approval_log import (
    APPROVE,
    REJECT,
    ApprovalLog,
    check_signed_approval,
    make_approval,
    policy_link,
)
from services.gateway.approval_rows import Approval, ApprovalRows
from services.gateway.asking import SINGLE_TIMEOUT_S, is_retried
from services.gateway.peers import Peers
from services.gateway.policy_rows import PolicyRows, Proposal
from services.gateway.transfer import failure_document

_log = logging.getLogger(__name__)

APPROVERS_NEEDED = 2


class ProposalState(StrEnum):
    PROPOSED = "PROPOSED"
    # Enough approvals; the signer is asked to put it in force.
    APPROVED = "APPROVED"
    IN_FORCE = "IN_FORCE"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    # The signer refused it.
    REFUSED = "REFUSED"


class PolicyChange(NamedTuple):
    proposal: Proposal
    state: ProposalState
    approvals: list[Approval]


class PolicyChanges:
    def __init__(self, rows: PolicyRows, approvals: ApprovalRows, log: ApprovalLog, peers: Peers, valid_s: float):
        self._rows = rows
        self._approvals = approvals
        self._log = log
        self._peers = peers
        self._valid_s = valid_s

    async def propose(self, document: str, proposer: str, traceparent: str) -> PolicyChange:
        """Keep a document that would be a policy; the same document again is the first proposal.

        Raises:
            WalletError: INVALID_REQUEST naming the path of what is wrong in it, an unknown account too; ALREADY_EXISTS
                when its version is not above the one in force.
        """
        content = document.encode()
        request = signer_pb2.CheckPolicyDocumentRequest(document=content)
        checked = await self._peers.signer.CheckPolicyDocument(request)
        stored = await self._rows.proposal(checked.sha256)
        if stored is None:
            in_force = await self._peers.signer.GetPolicy(signer_pb2.GetPolicyRequest())
            if checked.version <= in_force.version:
                rule = f"is above {in_force.version}, the version in force"
                raise WalletError(
                    Reason.ALREADY_EXISTS, "the policy's version is taken", field="policy.version", rule=rule
                )
            await self._check_accounts(checked.accounts)
            stored = await self._rows.propose(
                checked.sha256, checked.version, content, proposer, traceparent, self._valid_s
            )
        return await self._change(stored)

    async def _check_accounts(self, names: Iterable[str]) -> None:
        """Rules for an account that nobody has are a slip of the pen, and bound nothing."""
        for name in names:
            chain_id, _, address = name.rpartition(":")
            account = keys_pb2.AccountAddress(chain_id=chain_id, address=bytes.fromhex(address[2:]))
            try:
                await self._peers.keys.GetAccount(keys_pb2.GetAccountRequest(address=account))
            except WalletError as error:
                if error.reason is not Reason.NOT_FOUND:
                    raise
                refuse(f"accounts.{name}", "is an account that exists")

    async def newest(self, limit: int) -> list[PolicyChange]:
        return [await self._change(proposal) for proposal in await self._rows.newest(limit)]

    async def decide(
        self, sha256: bytes, approver: str, decision: str, signed: SignedRequest | None
    ) -> tuple[Approval, PolicyChange]:
        """Enter an approver's word, with the signature of the request; the same word again is the first one. The second
        approval puts it in force.

        Raises:
            WalletError: NOT_FOUND; ALREADY_EXISTS for a second, other word; SELF_APPROVAL for the proposer;
                ROLE_REQUIRED for one whom the policy in force does not name; REQUEST_SIGNATURE_INVALID for an approval
                that the key there has not signed; APPROVAL_REJECTED, APPROVAL_EXPIRED, TRANSFER_CLOSED when it
                is no longer open; EVIDENCE_UNAVAILABLE: it is entered later.
        """
        proposal = await self._rows.proposal(sha256)
        if proposal is None:
            raise WalletError(Reason.NOT_FOUND, "no such proposal", field="sha256", rule="names a proposed policy")
        change = await self._change(proposal)
        stored = next((one for one in change.approvals if one.approver == approver), None)
        if stored is None:
            stored = await self._store_new(change, approver, decision, signed)
        if stored.decision != decision:
            raise WalletError(
                Reason.ALREADY_EXISTS, "this approver has decided otherwise", field="sha256", rule="is decided once"
            )
        if stored.evidence_index is None:
            index = await self._log.append(stored)
            await self._approvals.entered([(stored, index)])
            stored = stored._replace(evidence_index=index)
        return stored, await self._advance(proposal)

    async def run(self) -> None:
        """Go on with what a crash, or a peer that was down, left half way."""
        for proposal in await self._rows.open():
            await self._advance(proposal)

    async def _store_new(
        self, change: PolicyChange, approver: str, decision: str, signed: SignedRequest | None
    ) -> Approval:
        proposal = change.proposal
        if approver == proposal.proposer:
            raise WalletError(
                Reason.SELF_APPROVAL, Reason.SELF_APPROVAL.meaning, field="Authorization", rule="is not the proposer's"
            )
        if change.state in _CLOSED:
            raise _closed(change)
        rule = (await self._peers.signer.GetPolicy(signer_pb2.GetPolicyRequest())).changes
        if rule.approvers and approver not in rule.approvers:
            named = "is of an approver whom the policy names"
            raise WalletError(Reason.ROLE_REQUIRED, Reason.ROLE_REQUIRED.meaning, field="Authorization", rule=named)
        if decision == APPROVE and approver in rule.keys:
            paths = [f"/v1/policies/{prefix}{proposal.sha256.hex()}:approve" for prefix in ("0x", "")]
            check_signed_approval(signed, rule.keys[approver], paths)
        now = await self._approvals.now()
        link_id = policy_link(proposal.sha256)
        subject = {"policy_sha256": to_hex(proposal.sha256), "proposer": proposal.proposer}
        approval = make_approval(
            link_id, approver, decision, subject, now, proposal.expires_at, proposal.traceparent, signed
        )
        if await self._approvals.decide_policy(proposal.sha256, approval):
            return approval
        # Decided meanwhile, by this approver or about the whole.
        current = await self._rows.proposal(proposal.sha256)
        assert current is not None
        change = await self._change(current)
        stored = next((one for one in change.approvals if one.approver == approver), None)
        if stored is None:
            raise _closed(change)
        return stored

    async def _advance(self, proposal: Proposal) -> PolicyChange:
        """Enter what is not in the log, and put in force what has its approvals."""
        change = await self._change(proposal)
        await self._log.complete(change.approvals)
        change = await self._change(proposal)
        if change.state is not ProposalState.APPROVED:
            return change
        request = signer_pb2.ActivatePolicyRequest(document=proposal.document, traceparent=proposal.traceparent)
        try:
            await self._peers.signer.ActivatePolicy(request, timeout=SINGLE_TIMEOUT_S)
        except WalletError as error:
            _log.warning("a policy is not put in force", extra={"error": str(error)})
            if not is_retried(error) and error.reason.code is not Code.INTERNAL:
                await self._rows.refused(proposal.sha256, failure_document(error))
        else:
            await self._rows.activated(proposal.sha256)
        current = await self._rows.proposal(proposal.sha256)
        assert current is not None
        return await self._change(current)

    async def _change(self, proposal: Proposal) -> PolicyChange:
        link_id = policy_link(proposal.sha256)
        now, found = await self._approvals.of_links([link_id])
        entered = [one for one in found[link_id] if one.evidence_index is not None]
        approved = sum(one.decision == APPROVE for one in entered)
        if proposal.activated_at is not None:
            state = ProposalState.IN_FORCE
        elif proposal.failure is not None:
            state = ProposalState.REFUSED
        elif any(one.decision == REJECT for one in entered):
            state = ProposalState.REJECTED
        elif approved >= APPROVERS_NEEDED:
            state = ProposalState.APPROVED
        elif proposal.expires_at <= now:
            state = ProposalState.EXPIRED
        else:
            state = ProposalState.PROPOSED
        return PolicyChange(proposal, state, found[link_id])


_CLOSED = {
    ProposalState.IN_FORCE: Reason.TRANSFER_CLOSED,
    ProposalState.REFUSED: Reason.TRANSFER_CLOSED,
    ProposalState.REJECTED: Reason.APPROVAL_REJECTED,
    ProposalState.EXPIRED: Reason.APPROVAL_EXPIRED,
}


def _closed(change: PolicyChange) -> WalletError:
    reason = _CLOSED.get(change.state, Reason.APPROVAL_EXPIRED)
    message = f"the proposal is {change.state}"
    return WalletError(reason, message, field="sha256", rule="names an open proposal", state=change.state)
