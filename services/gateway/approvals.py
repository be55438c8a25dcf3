"""Who may decide about a transfer, what each has decided, and whether that is enough. The signer counts for itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from services.core.addresses import Address
from services.core.amounts import parse_chain_id
from services.core.canonical import from_hex, to_hex
from services.core.errors import Reason, WalletError
from services.core.signed_requests import SignedRequest
from services.core.terms import terms_sha256
from services.gateway.approval_log import (
    APPROVE,
    REJECT,
    ApprovalLog,
    check_signed_approval,
    make_approval,
    transfer_link,
)
from services.gateway.approval_rows import Approval, ApprovalRows
from services.gateway.personal import PersonalVault
from services.gateway.store import Store
from services.gateway.transfer import State, Transfer


class Standing(NamedTuple):
    """What the log shows about a transfer that awaits approvals."""

    now: datetime
    approvals: list[Approval]

    @property
    def rejected_by(self) -> str | None:
        return next((one.approver for one in self.approvals if one.decision == REJECT), None)

    def satisfies(self, rule: dict[str, Any], requester: str) -> bool:
        given = {
            one.approver
            for one in self.approvals
            if one.decision == APPROVE
            and one.at + timedelta(seconds=rule["valid_s"]) > self.now
            and may_decide(rule, one.approver, requester)
            and _is_signed_as_asked(rule, one)
        }
        return len(given) >= int(rule["count"])


def may_decide(rule: dict[str, Any], approver: str, requester: str) -> bool:
    return approver != requester and (not rule["approvers"] or approver in rule["approvers"])


def _is_signed_as_asked(rule: dict[str, Any], approval: Approval) -> bool:
    """Given before the policy named its approver's key, it counts no more."""
    fingerprint = rule.get("keys", {}).get(approval.approver)
    return (
        fingerprint is None
        or json.loads(approval.body).get("client_signature", {}).get("key_fingerprint") == fingerprint
    )


def terms_hash(transfer: Transfer) -> str:
    """0x-hex of what approvals are bound to."""
    to = Address(transfer.to_address) if transfer.to_address else None
    chain_id = parse_chain_id(transfer.chain_id, "chain_id")
    sender = Address(transfer.from_address)
    return to_hex(terms_sha256(chain_id, sender, to, int(transfer.value_wei), transfer.data))


class Approvals:
    def __init__(self, store: Store, rows: ApprovalRows, log: ApprovalLog, vault: PersonalVault) -> None:
        self._store = store
        self._rows = rows
        self._log = log
        self._vault = vault

    async def standings(self, transfers: Sequence[Transfer]) -> dict[str, Standing]:
        """By transfer. Raises WalletError: EVIDENCE_UNAVAILABLE."""
        links = [transfer_link(transfer.transfer_id) for transfer in transfers]
        now, found = await self._rows.of_links(links)
        complete = await self._log.complete([one for approvals in found.values() for one in approvals])
        return {
            transfer.transfer_id: Standing(now, [one for one in complete if one.link_id == link])
            for transfer, link in zip(transfers, links, strict=True)
        }

    def requester(self, transfer: Transfer) -> str:
        if transfer.personal is None:
            return ""
        return self._vault.unseal(transfer.transfer_id, transfer.personal).actor

    async def of(self, transfer_id: str) -> list[Approval]:
        link_id = transfer_link(transfer_id)
        return (await self._rows.of_links([link_id]))[1][link_id]

    async def decide(
        self, transfer_id: str, approver: str, decision: str, terms: str, signed: SignedRequest | None
    ) -> Approval:
        """Enter an approver's word, with the signature of the request; the same word again is the first one.

        Raises:
            WalletError: NOT_FOUND; APPROVAL_MISMATCH when `terms` is not the transfer's; ALREADY_EXISTS for a second,
                other word; SELF_APPROVAL; ROLE_REQUIRED for one whom the policy does not name;
                REQUEST_SIGNATURE_INVALID for an approval that the key in the policy has not signed; APPROVAL_EXPIRED;
                TRANSFER_CLOSED when no approvals are taken; EVIDENCE_UNAVAILABLE: it is entered later.
        """
        # (1) May this one say so now?
        transfer = await self._store.transfer(transfer_id)
        if transfer is None:
            raise WalletError(Reason.NOT_FOUND, "no such transfer", field="id", rule="names a transfer")
        if transfer.approval is None:
            raise _closed(transfer)
        if terms.lower() != terms_hash(transfer):
            rule = "is terms_sha256 of the transfer as it is"
            reason = Reason.APPROVAL_MISMATCH
            raise WalletError(reason, reason.meaning, field="terms_sha256", rule=rule)
        stored = await self._stored(transfer_id, approver)
        if stored is None:
            stored = await self._store_new(transfer, approver, decision, signed)
        if stored.decision != decision:
            raise WalletError(
                Reason.ALREADY_EXISTS, "this approver has decided otherwise", field="id", rule="is decided once"
            )
        # (3) Append that very body; (4) only then it counts, and the saga looks.
        if stored.evidence_index is None:
            index = await self._log.append(stored)
            await self._rows.entered_of_transfer(transfer_id, stored, index)
            stored = stored._replace(evidence_index=index)
        return stored

    async def _store_new(
        self, transfer: Transfer, approver: str, decision: str, signed: SignedRequest | None
    ) -> Approval:
        rule = transfer.approval
        assert rule is not None
        if approver == self.requester(transfer):
            raise WalletError(
                Reason.SELF_APPROVAL, Reason.SELF_APPROVAL.meaning, field="Authorization", rule="is not the requester's"
            )
        if not may_decide(rule, approver, ""):
            named = "is of an approver whom the policy names"
            raise WalletError(Reason.ROLE_REQUIRED, Reason.ROLE_REQUIRED.meaning, field="Authorization", rule=named)
        terms = terms_hash(transfer)
        fingerprint = rule.get("keys", {}).get(approver)
        if decision == APPROVE and fingerprint is not None:
            paths = [f"/v1/transfers/{transfer.transfer_id}:approve"]
            check_signed_approval(signed, fingerprint, paths, from_hex(terms))
        # (2) Its exact body, in a row, while approvals are taken.
        now = await self._rows.now()
        expires_at = now + timedelta(seconds=rule["valid_s"])
        subject = {"terms_sha256": terms, "transfer_id": transfer.transfer_id}
        link_id = transfer_link(transfer.transfer_id)
        approval = make_approval(link_id, approver, decision, subject, now, expires_at, transfer.traceparent, signed)
        if await self._rows.decide_transfer(transfer.transfer_id, approval):
            return approval
        stored = await self._stored(transfer.transfer_id, approver)
        if stored is not None:
            return stored
        current = await self._store.transfer(transfer.transfer_id)
        assert current is not None
        raise _closed(current, now)

    async def _stored(self, transfer_id: str, approver: str) -> Approval | None:
        return next((one for one in await self.of(transfer_id) if one.approver == approver), None)


def _closed(transfer: Transfer, now: datetime | None = None) -> WalletError:
    cause = (transfer.failure or {}).get("reason")
    over = now is not None and transfer.approval_expires_at is not None and transfer.approval_expires_at <= now
    if cause == Reason.APPROVAL_EXPIRED.name or (transfer.state is State.AWAITING_APPROVAL and over):
        return WalletError(Reason.APPROVAL_EXPIRED, Reason.APPROVAL_EXPIRED.meaning, field="id")
    rule = f"is {State.AWAITING_APPROVAL}"
    return WalletError(
        Reason.TRANSFER_CLOSED, Reason.TRANSFER_CLOSED.meaning, field="id", rule=rule, state=transfer.state
    )
