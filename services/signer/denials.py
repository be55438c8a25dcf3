"""Refusals on the record: one denied intent, which closes its link."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.core.entries import Kind
from services.core.errors import Reason, WalletError
from services.runtime.evidence_log import Entry, EvidenceLog, Refused
from services.signer.bodies import Intended, intent_body
from services.signer.metrics import policy_denials
from services.signer.policy import Decision, Policy
from services.signer.store import Denial, Store


class Denied(NamedTuple):
    link_id: str
    intended: Intended
    decision: Decision
    trace_id: str
    span_id: str


class Denials:
    def __init__(self, store: Store, evidence: EvidenceLog) -> None:
        self._store = store
        self._evidence = evidence

    async def record(self, denied: Sequence[Denied], policy: Policy) -> list[int | WalletError]:
        """The index of each denied intent, in order; or why the log refused it.

        The first denial of a link is the one that counts: a later one, with another nonce perhaps, answers the first.
        """
        if not denied:
            return []
        stored = await self._store.deny(
            [
                Denial(
                    one.link_id,
                    one.intended.digest,
                    policy.version,
                    rule_text(one.decision.rules),
                    intent_body(one.intended, policy, one.decision),
                )
                for one in denied
            ]
        )
        known: dict[str, int | WalletError] = {
            row.link_id: row.intent_index for row in stored.values() if row.intent_index is not None
        }
        for one in denied:
            if one.link_id not in stored:
                # Decided before, by another call: what that has begun goes on.
                known[one.link_id] = WalletError(Reason.NONCE_CONFLICT, "the link is registered already")
        waiting = [one for one in denied if one.link_id not in known]
        if waiting:
            policy_denials.add(len(waiting))
            outcomes = await self._evidence.append([_entry(one, stored[one.link_id]) for one in waiting])
            for one, outcome in zip(waiting, outcomes, strict=True):
                known[one.link_id] = outcome.error if isinstance(outcome, Refused) else outcome
            await self._store.denials_entered(
                {one.link_id: index for one in waiting if isinstance(index := known[one.link_id], int)}
            )
        return [known[one.link_id] for one in denied]


def _entry(denied: Denied, row: Denial) -> Entry:
    assert row.intent_body is not None
    entry_id = intent_entry_id(row.digest.hex())
    return Entry(denied.link_id, entry_id, Kind.INTENT, denied.trace_id, denied.span_id, row.intent_body)


def rule_text(rules: Sequence[str]) -> str:
    return "; ".join(rules)


def policy_denied(rule: str) -> WalletError:
    return WalletError(Reason.POLICY_DENIED, Reason.POLICY_DENIED.meaning, rule=rule)


def intent_entry_id(digest_hex: str) -> str:
    return f"intent:{digest_hex}"
