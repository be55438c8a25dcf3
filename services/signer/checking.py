"""Policy, asked before anything is signed. A refusal goes on the record where the caller brings a draft for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.core.addresses import Address
from services.core.errors import WalletError, refuse
from services.core.transactions import decode_unsigned, signing_digest
from services.runtime.telemetry import current_ids, parse_traceparent
from services.signer.bodies import Intended, Requester
from services.signer.denials import Denials, Denied
from services.signer.policy import Decision, Policy, Terms
from services.signer.policy_versions import PolicyVersions


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
    decision: Decision
    evidence_index: int | None  # of the denied intent, where one was recorded


class Checking:
    def __init__(self, policy: Policy, policy_versions: PolicyVersions, denials: Denials) -> None:
        self._policy = policy
        self._policy_versions = policy_versions
        self._denials = denials

    async def check(self, checks: Sequence[Check]) -> list[CheckedTerms]:
        """One decision per check, in order.

        Raises:
            WalletError: INVALID_REQUEST with `index` if a draft is malformed or is not what its terms say;
                EVIDENCE_UNAVAILABLE or DATABASE_UNAVAILABLE if a refusal could not be recorded; what the log says
                where it refuses the record.
        """
        decisions = [self._policy.decide(check.terms) for check in checks]
        denied: list[Denied] = []
        places: list[int] = []
        for place, (check, decision) in enumerate(zip(checks, decisions, strict=True)):
            if check.draft is not None:
                intended = _intended(check, check.draft, place)
                if not decision.allowed:
                    ids = current_ids(check.draft.traceparent)
                    denied.append(Denied(check.transfer_id, intended, decision, *ids))
                    places.append(place)
        indexes: dict[int, int] = {}
        if denied:
            await self._policy_versions.ensure_entered()
            outcomes = await self._denials.record(denied)
            for place, outcome in zip(places, outcomes, strict=True):
                if isinstance(outcome, WalletError):
                    raise WalletError(outcome.reason, outcome.message, **{**outcome.details, "index": place})
                indexes[place] = outcome
        return [CheckedTerms(decision, indexes.get(place)) for place, decision in enumerate(decisions)]


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
