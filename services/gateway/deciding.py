"""Policy, before a nonce is held: allowed, denied on the record, or waiting for approvals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protos.wallet.v1 import signer_pb2, txbuilder_pb2
from services.core.errors import Reason, WalletError
from services.gateway.approvals import Approvals, Standing
from services.gateway.asking import BATCH_TIMEOUT_S, SINGLE_TIMEOUT_S, Round, ask, ask_each, is_retried
from services.gateway.changes import Changes
from services.gateway.peers import Peers
from services.gateway.progress import Progress
from services.gateway.signatures import Signatures
from services.gateway.transfer import State, Transfer


class Deciding:
    def __init__(
        self, progress: Progress, peers: Peers, signatures: Signatures, approvals: Approvals, changes: Changes
    ) -> None:
        self._progress = progress
        self._peers = peers
        self._signatures = signatures
        self._approvals = approvals
        self._changes = changes

    async def run(self, found: Round, transfers: Sequence[Transfer]) -> list[Transfer]:
        """Those that may be built now. A superseding link does nothing that a policy could refuse."""
        awaiting = [t for t in transfers if t.state is State.AWAITING_APPROVAL]
        standings = await self._standings(found, awaiting)
        asked = [t for t in transfers if t.supersedes is None and t.state is State.ACCEPTED]
        asked += [t for t in awaiting if t.transfer_id in standings]
        decided = found.sort(asked, await self._decisions([self._check(t) for t in asked]))
        if denied := [transfer for transfer, decision in decided if not decision.allowed]:
            await self._record_denials(found, denied)
        allowed = {t.transfer_id for t in transfers if t.supersedes is not None}
        waiting: list[tuple[Transfer, dict[str, Any]]] = []
        for transfer, decision in decided:
            if not decision.allowed:
                continue
            rule = _rule(decision)
            if rule is None or self._is_approved(transfer, standings.get(transfer.transfer_id), rule):
                allowed.add(transfer.transfer_id)
            else:
                waiting.append((transfer, rule))
        if waiting:
            await self._await_approvals(waiting)
        return [t for t in transfers if t.transfer_id in allowed]

    async def _standings(self, found: Round, awaiting: Sequence[Transfer]) -> dict[str, Standing]:
        """Of those that have the approvals that were asked for; what is rejected or too late fails, the rest waits."""
        if not awaiting:
            return {}
        try:
            standings = await self._approvals.standings(awaiting)
        except WalletError as error:
            if not is_retried(error):
                raise
            found.postponed += [(transfer, error) for transfer in awaiting]
            return {}
        approved, waiting = {}, []
        for transfer in awaiting:
            standing = standings[transfer.transfer_id]
            assert transfer.approval is not None
            assert transfer.approval_expires_at is not None
            if standing.rejected_by is not None:
                found.failures.append((transfer, _refusal(Reason.APPROVAL_REJECTED)))
            elif self._is_approved(transfer, standing, transfer.approval):
                approved[transfer.transfer_id] = standing
            elif transfer.approval_expires_at <= standing.now:
                found.failures.append((transfer, _refusal(Reason.APPROVAL_EXPIRED)))
            else:
                waiting.append(transfer)
        await self._progress.waiting(waiting)
        return approved

    def _is_approved(self, transfer: Transfer, standing: Standing | None, rule: dict[str, Any]) -> bool:
        return standing is not None and standing.satisfies(rule, self._approvals.requester(transfer))

    async def _await_approvals(self, waiting: list[tuple[Transfer, dict[str, Any]]]) -> None:
        kept = await self._progress.awaiting(waiting)
        for transfer, _ in waiting:
            if transfer.transfer_id in kept:
                transfer.state = State.AWAITING_APPROVAL
        self._changes.announce(kept)

    async def _record_denials(self, found: Round, denied: Sequence[Transfer]) -> None:
        """The refusal is a link of one denied intent, with the account's next nonce unreserved."""
        drafts = found.sort(denied, await ask_each(denied, self._draft))
        checks = [self._check(transfer, draft.unsigned_tx) for transfer, draft in drafts]
        transfers = [transfer for transfer, _ in drafts]
        for transfer, decision in found.sort(transfers, await self._decisions(checks)):
            if decision.allowed:
                # The policy changed in between: the step is restarted.
                changed = WalletError(Reason.LEASE_LOST, "the policy changed while it decided")
                found.postponed.append((transfer, changed))
            else:
                rule = "; ".join(decision.rules)
                message = Reason.POLICY_DENIED.meaning
                refusal = WalletError(Reason.POLICY_DENIED, message, rule=rule, policy_version=decision.policy_version)
                found.failures.append((transfer, refusal))

    async def _decisions(
        self, checks: Sequence[signer_pb2.PolicyCheck]
    ) -> list[signer_pb2.PolicyDecision | WalletError]:
        async def single(check: signer_pb2.PolicyCheck) -> Any:
            return (await batch([check]))[0]

        async def batch(some: Sequence[signer_pb2.PolicyCheck]) -> list[Any]:
            request = signer_pb2.CheckPolicyRequest(checks=some)
            return list((await self._peers.signer.CheckPolicy(request, timeout=BATCH_TIMEOUT_S)).decisions)

        return await ask(checks, single, batch)

    def _check(self, transfer: Transfer, draft_unsigned_tx: bytes = b"") -> signer_pb2.PolicyCheck:
        return signer_pb2.PolicyCheck(
            transfer_id=transfer.transfer_id,
            terms=transfer.terms,
            draft_unsigned_tx=draft_unsigned_tx,
            key=transfer.key,
            requester=self._signatures.requester(transfer),
            traceparent=transfer.traceparent,
        )

    async def _draft(self, transfer: Transfer) -> Any:
        request = txbuilder_pb2.BuildTransactionRequest(
            transfer_id=transfer.transfer_id, terms=transfer.terms, fees=transfer.fee_options
        )
        return await self._peers.txbuilder.DraftTransaction(request, timeout=SINGLE_TIMEOUT_S)


def _rule(decision: signer_pb2.PolicyDecision) -> dict[str, Any] | None:
    """What the row keeps of the approvals that the policy asks for."""
    if not decision.HasField("approval"):
        return None
    approval = decision.approval
    return {
        "count": approval.count,
        "valid_s": approval.valid_s,
        "approvers": list(approval.approvers),
        "keys": dict(approval.keys),
    }


def _refusal(reason: Reason) -> WalletError:
    return WalletError(reason, reason.meaning)
