"""Policy, asked before anything is signed. A refusal goes on the record where the caller brings a draft for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from services.core.addresses import Address
from services.core.errors import WalletError, refuse
from services.core.transactions import decode_unsigned, signing_digest
from services.runtime.telemetry import current_ids, parse_traceparent
from services.signer.bodies import Intended, Requester
from services.signer.denials import Denials, Denied
from services.signer.policy import Decision, Policy, Terms
from services.signer.policy_versions import PolicyVersions
from services.signer.replacing import fee_wei
from services.signer.velocity import Candidate
from services.signer.velocity_store import VelocityStore


class Draft(NamedTuple):
    """The transaction that would have been signed, with the account's next nonce, unreserved."""

    unsigned_tx: bytes
    key_id: str
    key_version: int
    requester: Requester
    traceparent: str


class Check(NamedTuple):
    transfer_id: str
    from_address: Address
    terms: Terms
    draft: Draft | None


class CheckedTerms(NamedTuple):
    policy: Policy
    decision: Decision
    evidence_index: int | None  # of the denied intent, where one was recorded


class Checking:
    def __init__(self, policy_versions: PolicyVersions, velocity: VelocityStore, denials: Denials) -> None:
        self._policy_versions = policy_versions
        self._velocity = velocity
        self._denials = denials

    async def check(self, checks: Sequence[Check]) -> list[CheckedTerms]:
        """One decision per check, in order: what would be decided now. Velocity is foreseen, not counted.

        Raises:
            WalletError: INVALID_REQUEST with `index` if a draft is malformed or is not what its terms say;
                EVIDENCE_UNAVAILABLE or DATABASE_UNAVAILABLE if a refusal could not be recorded, or if the database has
                to be asked; what the log says where it refuses the record.
        """
        drafts = [
            _intended(check, check.draft, place) if check.draft is not None else None
            for place, check in enumerate(checks)
        ]
        policy = await self._policy_versions.policy()
        decisions = await self._decide(checks, drafts, policy)
        if not all(one.allowed for one in decisions) and await self._policy_versions.changed_since(policy):
            # Refused by a policy that is no more in force.
            policy = await self._policy_versions.policy()
            decisions = await self._decide(checks, drafts, policy)
        denied: list[Denied] = []
        places: list[int] = []
        for place, (check, intended, decision) in enumerate(zip(checks, drafts, decisions, strict=True)):
            if check.draft is not None and intended is not None and not decision.allowed:
                denied.append(Denied(check.transfer_id, intended, decision, *current_ids(check.draft.traceparent)))
                places.append(place)
        indexes: dict[int, int] = {}
        if denied:
            await self._policy_versions.entered_policy()
            outcomes = await self._denials.record(denied, policy)
            for place, outcome in zip(places, outcomes, strict=True):
                if isinstance(outcome, WalletError):
                    raise WalletError(outcome.reason, outcome.message, **{**outcome.details, "index": place})
                indexes[place] = outcome
        return [CheckedTerms(policy, decision, indexes.get(place)) for place, decision in enumerate(decisions)]

    async def _decide(
        self, checks: Sequence[Check], drafts: Sequence[Intended | None], policy: Policy
    ) -> list[Decision]:
        now = datetime.now(UTC)
        decisions = [
            policy.decide(check.terms, check.from_address, (now,), fee_wei(draft.tx) if draft is not None else None)
            for check, draft in zip(checks, drafts, strict=True)
        ]
        candidates = [
            Candidate(check.transfer_id, check.from_address, decision.counted)
            for check, decision in zip(checks, decisions, strict=True)
            if decision.counted is not None
        ]
        refused = await self._velocity.foresee(candidates, now) if candidates else {}
        return [
            Decision(False, (refused[check.transfer_id],)) if check.transfer_id in refused else decision
            for check, decision in zip(checks, decisions, strict=True)
        ]


def _intended(check: Check, draft: Draft, place: int) -> Intended:
    try:
        tx = decode_unsigned(draft.unsigned_tx)
        if Terms(tx.chain_id, tx.to, tx.value_wei, tx.data) != check.terms:
            refuse("draft_unsigned_tx", "does what the terms say")
        if parse_traceparent(draft.traceparent) is None:
            refuse("traceparent", "is a W3C traceparent")
    except WalletError as error:
        raise WalletError(error.reason, error.message, **{**error.details, "index": place}) from error
    return Intended(
        tx,
        draft.unsigned_tx,
        signing_digest(draft.unsigned_tx),
        check.from_address,
        draft.key_id,
        draft.key_version,
        draft.requester,
    )
