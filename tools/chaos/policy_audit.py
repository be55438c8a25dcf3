"""What the log says of policies and approvals, and whether every intent was decided by them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from tools.chaos.plan import AWAITING, NEVER_MINED, Kind, Wish

# As many approvals as the harness's policies ask for is their version; a change of the policy takes these.
_POLICY_APPROVERS = 2


class Approval(NamedTuple):
    leaf_hash: str  # 0x-hex
    approver: str
    decision: str


class Version(NamedTuple):
    """An entry that puts a policy in force."""

    sha256: str  # 0x-hex, of the document
    approvals: tuple[str, ...]  # leaf hashes


class Intent(NamedTuple):
    """What the first intent of a link says of the policy that decided."""

    version: int
    allowed: bool
    approvals: tuple[str, ...]  # leaf hashes


class PolicyAudit:
    """Told of entries in the log's order."""

    def __init__(self) -> None:
        self.versions: dict[int, Version] = {}
        self.approvals: defaultdict[str, list[Approval]] = defaultdict(list)  # by link
        self.intents: dict[str, Intent] = {}  # by link
        # Intents of a policy that the log did not have by then.
        self.unfounded: list[str] = []

    def note_administrative(self, link_id: str, leaf_hash: bytes, body: dict[str, Any]) -> None:
        if body.get("act") == "approval":
            self.approvals[link_id].append(Approval(_hex(leaf_hash), body["approver"], body["decision"]))
        elif "document" in body:
            self.versions[body["version"]] = Version(body["sha256"], tuple(body.get("approvals", ())))

    def note_intent(self, link_id: str, policy: dict[str, Any]) -> None:
        version = self.versions.get(policy["version"])
        if version is None or version.sha256 != policy["sha256"]:
            self.unfounded.append(link_id)
        if link_id not in self.intents:
            approvals = tuple(policy.get("approvals", ()))
            self.intents[link_id] = Intent(policy["version"], policy["decision"] == "allow", approvals)

    def wrongly_decided(self, accepted: Mapping[str, Wish], finalized: Iterable[str], requester: str) -> list[str]:
        """Transfers that waited for approvals, and were signed without enough, or despite a rejection."""
        wrong = [one for one, wish in accepted.items() if self._is_signed(one) and wish.kind in NEVER_MINED]
        wrong = [f"{one} ({accepted[one].kind}) has an allowed intent" for one in wrong]
        for one in finalized:
            if one in accepted and accepted[one].kind in AWAITING:
                wrong += [f"{one}: {fault}" for fault in self._faults_of_approved(one, requester)]
        for one, wish in accepted.items():
            if wish.kind is Kind.REJECTED and "reject" not in {found.decision for found in self.approvals[_link(one)]}:
                wrong.append(f"{one}: the log has no rejection")
        return wrong

    def _is_signed(self, link_id: str) -> bool:
        return link_id in self.intents and self.intents[link_id].allowed

    def _faults_of_approved(self, transfer_id: str, requester: str) -> list[str]:
        intent = self.intents.get(transfer_id)
        if intent is None or not intent.allowed:
            return ["no intent that is allowed"]
        given = self.approvals[_link(transfer_id)]
        faults = _faults_of_quorum(intent.approvals, given, intent.version, requester)
        return faults + (["it was rejected"] if any(one.decision == "reject" for one in given) else [])

    def faults_of_change(self, document: str, version: int, proposer: str) -> list[str]:
        """What is wrong with the entries of a policy that two approvers have put in force."""
        digest = sha256(document.encode()).hexdigest()
        entered = self.versions.get(version)
        if entered is None or entered.sha256 != f"0x{digest}":
            return [f"the log has no version {version} of this document"]
        given = self.approvals[f"policy:{digest[:32]}:approval"]
        faults = _faults_of_quorum(entered.approvals, given, _POLICY_APPROVERS, proposer)
        used = sum(intent.version == version for intent in self.intents.values())
        return faults + ([] if used else [f"no intent names version {version}"])


def _faults_of_quorum(named: Sequence[str], given: Sequence[Approval], needed: int, asker: str) -> list[str]:
    """`named` are the leaf hashes that somebody relied on, `given` what the log has about it."""
    approvals = {one.leaf_hash: one.approver for one in given if one.decision == "approve"}
    strange = [one for one in named if one not in approvals]
    approvers = {approvals[one] for one in named if one in approvals} - {asker}
    faults = [f"names {one}, which is no approval of it" for one in strange]
    return faults + ([f"{len(approvers)} of {needed} approvers"] if len(approvers) < needed else [])


def _link(transfer_id: str) -> str:
    return f"{transfer_id}:approval"


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
