"""What clients get: JSON models of transfers, wallets, accounts, links, policy and status."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any, Literal

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel, Field

from protos.wallet.v1 import evidence_pb2, keys_pb2, signer_pb2
from services.core.addresses import Address, checksum_address
from services.core.canonical import format_time, to_hex
from services.gateway.approval_log import APPROVE
from services.gateway.approval_rows import Approval
from services.gateway.approvals import terms_hash
from services.gateway.policy_changes import PolicyChange, ProposalState
from services.gateway.transfer import State, Transfer


class FailureView(BaseModel):
    reason: str = Field(description="A name of docs/ERRORS.md.")
    message: str
    details: dict[str, str] = Field(default={}, description="Field, rule and figures, by name.")


class ApprovalRuleView(BaseModel):
    count: int = Field(description="Distinct approvers, none of them the requester.")
    valid_s: int = Field(description="Seconds that an approval counts.")
    approvers: list[str] = Field(description="Who may approve; empty: every approver.")
    keys: dict[str, str] = Field(
        default={}, description="By name: the fingerprint of the key that has to sign this approver's approval."
    )
    expires_at: str = Field(description="Until then approvals are taken.")


class TransferView(BaseModel):
    id: str
    state: State
    account_id: str
    account: str = Field(description="CAIP-10 of the sender.")
    chain_id: str
    to: str | None
    value_wei: str
    nonce: int | None
    tx_hash: str | None
    trace_id: str
    traceparent: str
    created_at: str
    updated_at: str
    block_number: int | None
    receipt_status: int | None = Field(description="EIP-658: 1 success, 0 reverted; null before inclusion.")
    failure: FailureView | None
    replacements: int = Field(description="Fee bumps that the broadcaster holds beside the first transaction.")
    stall: str | None = Field(
        description="Why it does not go on: NOT_MINED, UNDERPRICED, INSUFFICIENT_FUNDS, FEE_CAP_REACHED, CHAIN_CLOCK; "
        "else null."
    )
    supersedes: str | None = Field(
        description="Of a superseding transfer: whose nonce it spends, empty for one that was given back; else null."
    )
    superseded_by: str | None = Field(description="The transfer that spends its nonce in its place, if there is one.")
    terms_sha256: str | None = Field(description="What approvals are bound to; null where none are asked for.")
    approval: ApprovalRuleView | None = Field(description="The approvals that the policy asks for; null without any.")
    link: str = Field(description="Path of its golden link.")


class TransferListView(BaseModel):
    """Transfers, or with a batch the accepted ones in its order."""

    transfers: list[TransferView]
    next: str | None = Field(default=None, description="`cursor` of the next page; null on the last.")


class TransferEventView(BaseModel):
    transfer_id: str
    state: State
    at: str
    tx_hash: str | None = None
    failure: FailureView | None = None


class ApprovalView(BaseModel):
    link_id: str = Field(description="The link of the log that it is an entry of.")
    approver: str
    decision: Literal["approve", "reject"]
    at: str
    expires_at: str
    evidence_index: int | None = Field(description="Index in the log; null while the log does not have it yet.")


class TransferApprovalsView(BaseModel):
    transfer_id: str
    state: State
    terms_sha256: str | None
    approval: ApprovalRuleView | None
    approvals: list[ApprovalView]


class ProposalView(BaseModel):
    sha256: str
    version: int
    document: str = Field(description="YAML, as proposed.")
    proposer: str
    state: ProposalState
    created_at: str
    expires_at: str
    failure: FailureView | None = Field(description="Why the signer refused it.")
    approvals: list[ApprovalView]


class ProposalListView(BaseModel):
    policies: list[ProposalView]


class PolicyDecisionView(BaseModel):
    decision: ApprovalView
    policy: ProposalView


class WalletView(BaseModel):
    id: str
    name: str
    created_at: str
    encrypted_recovery: str | None = Field(description="0x-hex HPKE message; null without a recovery recipient.")


class AccountView(BaseModel):
    id: str
    wallet_id: str
    chain_id: str | None
    account: str | None = Field(description="CAIP-10.")
    address: str | None
    algorithm: str
    public_key: str
    key_id: str
    key_version: int
    derivation_path: str
    created_at: str


class LinkEntryView(BaseModel):
    index: int
    step: int
    kind: str
    entry_id: str
    at: str
    leaf: str = Field(description="Canonical leaf, base64.")
    body: dict[str, Any] | None = Field(description="Null when erased.")
    salt: str | None
    provable: bool = Field(description="A checkpoint covers it.")


class LinkView(BaseModel):
    link_id: str
    trace_id: str
    state: str
    checkpoint_size: int
    entries: list[LinkEntryView]


class PolicyView(BaseModel):
    version: int
    sha256: str
    document: str = Field(description="YAML, as loaded.")


class ServiceStatusView(BaseModel):
    answering: bool
    missing: list[str] = []
    details: dict[str, Any] = {}


class StatusView(BaseModel):
    can_sign: bool
    missing: list[str] = Field(description="One sentence per missing thing.")
    services: dict[str, ServiceStatusView]


def failure_view(failure: dict[str, Any] | None) -> FailureView | None:
    return FailureView(**failure) if failure is not None else None


def transfer_view(transfer: Transfer, waits_for: str | None) -> TransferView:
    """`waits_for` is what all of its chain in its state wait for: shown where it has no stall of its own."""
    return TransferView(
        id=transfer.transfer_id,
        state=transfer.state,
        account_id=transfer.account_id,
        account=f"{transfer.chain_id}:0x{transfer.from_address.hex()}",
        chain_id=transfer.chain_id,
        to=transfer.to_text,
        value_wei=transfer.value_wei,
        nonce=transfer.nonce,
        tx_hash=to_hex(transfer.tx_hash) if transfer.tx_hash is not None else None,
        trace_id=transfer.trace_id,
        traceparent=transfer.traceparent,
        created_at=format_time(transfer.created_at),
        updated_at=format_time(transfer.updated_at),
        block_number=transfer.block_number,
        receipt_status=transfer.receipt_status,
        # A failure is stored before it is carried out, and is told once it is.
        failure=failure_view(transfer.failure) if transfer.state is State.FAILED else None,
        replacements=transfer.replacement,
        stall=transfer.stall or waits_for,
        supersedes=transfer.supersedes,
        superseded_by=transfer.superseded_by,
        terms_sha256=terms_hash(transfer) if transfer.approval is not None else None,
        approval=_approval_rule(transfer),
        link=f"/v1/links/{transfer.transfer_id}",
    )


def _approval_rule(transfer: Transfer) -> ApprovalRuleView | None:
    if transfer.approval is None or transfer.approval_expires_at is None:
        return None
    return ApprovalRuleView(**transfer.approval, expires_at=format_time(transfer.approval_expires_at))


def approval_view(approval: Approval) -> ApprovalView:
    return ApprovalView(
        link_id=approval.link_id,
        approver=approval.approver,
        decision="approve" if approval.decision == APPROVE else "reject",
        at=format_time(approval.at),
        expires_at=format_time(approval.expires_at),
        evidence_index=approval.evidence_index,
    )


def transfer_approvals_view(transfer: Transfer, approvals: list[Approval]) -> TransferApprovalsView:
    return TransferApprovalsView(
        transfer_id=transfer.transfer_id,
        state=transfer.state,
        terms_sha256=terms_hash(transfer) if transfer.approval is not None else None,
        approval=_approval_rule(transfer),
        approvals=[approval_view(approval) for approval in approvals],
    )


def proposal_view(change: PolicyChange) -> ProposalView:
    proposal = change.proposal
    return ProposalView(
        sha256=to_hex(proposal.sha256),
        version=proposal.version,
        document=proposal.document.decode(errors="replace"),
        proposer=proposal.proposer,
        state=change.state,
        created_at=format_time(proposal.created_at),
        expires_at=format_time(proposal.expires_at),
        failure=failure_view(proposal.failure),
        approvals=[approval_view(approval) for approval in change.approvals],
    )


def policy_decision_view(approval: Approval, change: PolicyChange) -> PolicyDecisionView:
    return PolicyDecisionView(decision=approval_view(approval), policy=proposal_view(change))


def wallet_view(wallet: keys_pb2.Wallet) -> WalletView:
    recovery = to_hex(wallet.encrypted_recovery) if wallet.encrypted_recovery else None
    return WalletView(
        id=wallet.wallet_id, name=wallet.name, created_at=_time(wallet.created_at), encrypted_recovery=recovery
    )


def account_view(account: keys_pb2.Account) -> AccountView:
    ed25519 = account.algorithm == keys_pb2.ALGORITHM_ED25519
    return AccountView(
        id=account.account_id,
        wallet_id=account.wallet_id,
        chain_id=account.chain_id or None,
        account=f"{account.chain_id}:0x{account.address.hex()}" if account.address else None,
        address=checksum_address(Address(account.address)) if account.address else None,
        algorithm="ed25519" if ed25519 else "ecdsa_secp256k1",
        public_key=to_hex(account.public_key),
        key_id=account.key.key_id,
        key_version=account.key.version,
        derivation_path=account.derivation_path,
        created_at=_time(account.created_at),
    )


def link_view(link: evidence_pb2.Link) -> LinkView:
    entries = [
        LinkEntryView(
            index=entry.index,
            step=entry.step,
            kind=entry.kind,
            entry_id=entry.entry_id,
            at=_time(entry.at),
            leaf=base64.b64encode(entry.leaf).decode(),
            body=json.loads(entry.body) if entry.body else None,
            salt=to_hex(entry.salt) if entry.salt else None,
            provable=entry.index < link.checkpoint_size,
        )
        for entry in link.entries
    ]
    return LinkView(
        link_id=link.link_id,
        trace_id=link.trace_id,
        state=link.state,
        checkpoint_size=link.checkpoint_size,
        entries=entries,
    )


def policy_view(policy: signer_pb2.Policy) -> PolicyView:
    return PolicyView(
        version=policy.version, sha256=to_hex(policy.sha256), document=policy.document.decode(errors="replace")
    )


def _time(stamp: Timestamp) -> str:
    at: datetime = stamp.ToDatetime(UTC)
    return format_time(at)
