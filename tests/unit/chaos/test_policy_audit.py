"""Told of entries that do not belong together, the audit of approvals says so."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from tools.chaos.plan import Kind, Wish
from tools.chaos.policy_audit import PolicyAudit

DOCUMENT = "version: 2"
DIGEST = sha256(DOCUMENT.encode()).hexdigest()
POLICIES = {1: "0x01", 2: f"0x{DIGEST}"}
ASKER = "olga"


def wish(kind: Kind) -> Wish:
    return Wish(0, kind, 0, "0x" + "11" * 20, 0.0)


class Log:
    def __init__(self) -> None:
        self.audit = PolicyAudit()
        self._entries = 0

    def version(self, version: int, approvals: list[str] | None = None) -> None:
        body: dict[str, Any] = {"version": version, "sha256": POLICIES[version], "document": DOCUMENT}
        self._enter(f"policy:{version}", body | ({"approvals": approvals} if approvals else {}))

    def approval(self, link_id: str, approver: str, decision: str = "approve") -> str:
        """Its leaf hash."""
        return self._enter(link_id, {"act": "approval", "approver": approver, "decision": decision})

    def intent(self, link_id: str, version: int, approvals: list[str] | None = None, allowed: bool = True) -> None:
        decision = "allow" if allowed else "deny"
        policy: dict[str, Any] = {"version": version, "sha256": POLICIES[version], "decision": decision}
        self.audit.note_intent(link_id, policy | ({"approvals": approvals} if approvals else {}))

    def _enter(self, link_id: str, body: dict[str, Any]) -> str:
        self._entries += 1
        leaf_hash = bytes([self._entries]) * 32
        self.audit.note_administrative(link_id, leaf_hash, body)
        return "0x" + leaf_hash.hex()


def wrong(log: Log, kind: Kind, finalized: bool = True) -> list[str]:
    return log.audit.wrongly_decided({"t": wish(kind)}, ["t"] if finalized else [], ASKER)


def test_as_many_approvals_as_the_version_asks_for() -> None:
    log = Log()
    log.version(1)
    log.version(2)
    log.intent("t", 2, [log.approval("t:approval", "ann"), log.approval("t:approval", "bob")])
    assert wrong(log, Kind.APPROVED) == []


def test_one_approval_is_not_enough_once_two_are_asked_for() -> None:
    log = Log()
    log.version(2)
    log.intent("t", 2, [log.approval("t:approval", "ann")])
    assert wrong(log, Kind.APPROVED) == ["t: 1 of 2 approvers"]


def test_an_approver_counts_once_and_who_asked_does_not() -> None:
    log = Log()
    log.version(2)
    twice = [log.approval("t:approval", "ann"), log.approval("t:approval", "ann"), log.approval("t:approval", ASKER)]
    log.intent("t", 2, twice)
    assert wrong(log, Kind.APPROVED) == ["t: 1 of 2 approvers"]


def test_an_approval_of_something_else_is_found() -> None:
    log = Log()
    log.version(1)
    other = log.approval("u:approval", "ann")
    log.intent("t", 1, [other])
    assert wrong(log, Kind.APPROVED) == [f"t: names {other}, which is no approval of it", "t: 0 of 1 approvers"]


def test_a_finalized_transfer_without_approvals_is_found() -> None:
    log = Log()
    log.version(1)
    log.intent("t", 1)
    assert wrong(log, Kind.APPROVED) == ["t: 0 of 1 approvers"]


def test_a_rejected_transfer_has_its_rejection_and_nothing_that_allows_it() -> None:
    log = Log()
    log.version(1)
    assert wrong(log, Kind.REJECTED, finalized=False) == ["t: the log has no rejection"]
    log.approval("t:approval", "ann", "reject")
    assert wrong(log, Kind.REJECTED, finalized=False) == []
    log.intent("t", 1)
    assert wrong(log, Kind.REJECTED, finalized=False) == ["t (rejected) has an allowed intent"]


def test_a_denied_transfer_has_a_denied_intent() -> None:
    log = Log()
    log.version(1)
    log.intent("t", 1, allowed=False)
    assert wrong(log, Kind.DENIED, finalized=False) == []


def test_a_bump_after_a_change_does_not_stand_for_the_decision() -> None:
    log = Log()
    log.version(1)
    log.intent("t", 1, [log.approval("t:approval", "ann")])
    log.version(2)
    log.intent("t", 2)
    assert wrong(log, Kind.APPROVED) == []


def test_an_intent_of_a_policy_that_is_entered_later_is_found() -> None:
    log = Log()
    log.version(1)
    log.intent("t", 2)
    log.version(2)
    assert log.audit.unfounded == ["t"]


def test_a_change_takes_two_approvers_besides_who_proposed_it() -> None:
    link_id = f"policy:{DIGEST[:32]}:approval"
    log = Log()
    log.version(1)
    log.version(2, [log.approval(link_id, "ann"), log.approval(link_id, ASKER)])
    log.intent("t", 2)
    assert log.audit.faults_of_change(DOCUMENT, 2, ASKER) == ["1 of 2 approvers"]
    log.version(2, [log.approval(link_id, "ann"), log.approval(link_id, "bob")])
    assert log.audit.faults_of_change(DOCUMENT, 2, ASKER) == []


def test_a_change_that_nothing_was_decided_by_is_no_proof() -> None:
    link_id = f"policy:{DIGEST[:32]}:approval"
    log = Log()
    log.version(2, [log.approval(link_id, "ann"), log.approval(link_id, "bob")])
    assert log.audit.faults_of_change(DOCUMENT, 2, ASKER) == ["no intent names version 2"]
    assert log.audit.faults_of_change("version: 3", 3, ASKER) == ["the log has no version 3 of this document"]
