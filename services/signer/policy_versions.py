"""The policy in force: the highest version that the database holds, the same for every replica.

It is on the record before it decides: a row of its own, then an entry of the log. The policy file is the first version
of an empty database and nothing after; every other takes two approvals, which are read from the log.
"""

from __future__ import annotations

import asyncio
import logging
from hashlib import sha256
from typing import Any, NamedTuple

from services.core.canonical import canonical_json, to_hex
from services.core.entries import Kind
from services.core.errors import Reason, WalletError, refuse
from services.runtime.evidence_log import Entry, EvidenceLog, Refused
from services.runtime.telemetry import current_ids, new_traceparent
from services.signer.approvals import ApprovalLog, Quorum, check_quorum
from services.signer.contradictions import check_contradictions
from services.signer.policy import Policy
from services.signer.policy_document import CHANGE_APPROVALS, parse_policy
from services.signer.policy_store import PolicyRow, PolicyStore
from services.signer.rules import names_of

_log = logging.getLogger(__name__)


class _InForce(NamedTuple):
    policy: Policy
    row: PolicyRow


class PolicyVersions:
    def __init__(self, file: bytes, store: PolicyStore, evidence: EvidenceLog, approvals: ApprovalLog) -> None:
        self._file = file
        self._store = store
        self._evidence = evidence
        self._approvals = approvals
        self._in_force: _InForce | None = None
        self._entered: _InForce | None = None
        self._reported = False
        self._changing = asyncio.Lock()

    @property
    def entered(self) -> bool:
        return self._in_force is not None and self._entered is self._in_force

    async def policy(self) -> Policy:
        """The version in force as this replica knows it.

        Raises:
            WalletError: DATABASE_UNAVAILABLE; SERVICE_UNAVAILABLE if it is written for a later signer; INVALID_REQUEST
                if the database is empty and the file is no policy.
        """
        return (self._in_force or await self._load()).policy

    async def entered_policy(self) -> Policy:
        """The version in force, once the log has it. Raises like `policy`, and EVIDENCE_UNAVAILABLE."""
        in_force = self._in_force
        if in_force is None or in_force is not self._entered:
            in_force = in_force or await self._load()
            async with self._changing:
                if in_force is not self._entered:
                    await self._enter(in_force.row)
                    self._entered = in_force
        return in_force.policy

    async def refresh(self) -> bool:
        """Look whether another version is in force by now; it is taken then."""
        known = self._in_force
        if known is not None and await self._store.version() == known.policy.version:
            return False
        return await self._load() is not known

    async def changed_since(self, policy: Policy) -> bool:
        """Look whether another version than `policy` is in force by now."""
        await self.refresh()
        return (await self.policy()).sha256 != policy.sha256

    @property
    def ignored_file_sha256(self) -> bytes:
        """Of a policy file that is not the version in force; empty if it is."""
        digest = sha256(self._file).digest()
        return b"" if self._in_force is None or self._in_force.policy.sha256 == digest else digest

    def check_document(self, document: bytes) -> Policy:
        """The policy that `document` would be, whatever is in force.

        Raises:
            WalletError: INVALID_REQUEST with the path of what is wrong: it is no policy, or contradicts itself.
        """
        policy = parse_policy(document)
        check_contradictions(policy)
        return policy

    async def activate(self, document: bytes, traceparent: str) -> Policy:
        """Put a document in force that the log shows two approvals of.

        Raises:
            WalletError: what `check_document` raises; ALREADY_EXISTS if its version is not above the one in force;
                APPROVAL_REQUIRED, APPROVAL_REJECTED, APPROVAL_EXPIRED, APPROVAL_MISMATCH.
        """
        policy = self.check_document(document)
        await self.refresh()
        # Ends: whatever comes in between has a higher number, and ours is above it or refused.
        while policy.sha256 != (in_force := await self.policy()).sha256:
            _check_version(policy, in_force.version)
            leaf_hashes = await self._check_approvals(policy, in_force)
            body = _body(policy) | {"approvals": [to_hex(one) for one in leaf_hashes]}
            row = PolicyRow(policy.version, policy.sha256, policy.document, traceparent, canonical_json(body))
            await self._store.supersede(row, in_force.version)
            await self.refresh()
        return await self.entered_policy()

    async def _check_approvals(self, policy: Policy, in_force: Policy) -> list[bytes]:
        """Who may approve, and by which key, the policy says that is to be replaced."""
        approvals = await self._approvals.read(f"policy:{policy.sha256.hex()[:32]}:approval")
        proposers = frozenset(one.proposer for one in approvals)
        approvers = names_of(in_force.change_approvers)
        quorum = Quorum(CHANGE_APPROVALS, None, approvers, proposers, in_force.approver_keys)
        return check_quorum(approvals, quorum, "", policy.sha256, await self._store.clock())

    async def _load(self) -> _InForce:
        async with self._changing:
            row = await self._store.in_force() or await self._seed()
            known = self._in_force
            if known is None or known.row.sha256 != row.sha256:
                known = self._in_force = _InForce(_read(row), row)
                self._report()
            return known

    async def _seed(self) -> PolicyRow:
        policy = parse_policy(self._file)
        check_contradictions(policy)
        return await self._store.seed(
            PolicyRow(policy.version, policy.sha256, policy.document, new_traceparent(), canonical_json(_body(policy)))
        )

    def _report(self) -> None:
        assert self._in_force is not None
        policy = self._in_force.policy
        _log.info("policy version %d is in force", policy.version)
        if self.ignored_file_sha256 and not self._reported:
            self._reported = True
            _log.warning(
                "the policy file is not the version in force and is ignored: it seeds an empty database only; a change "
                "needs two approvals"
            )

    async def _enter(self, row: PolicyRow) -> None:
        trace_id, span_id = current_ids(row.traceparent)
        link_id = f"policy:{row.version}:{row.sha256.hex()[:16]}"
        (outcome,) = await self._evidence.append(
            [Entry(link_id, f"policy:{row.version}", Kind.POLICY, trace_id, span_id, row.body)]
        )
        if isinstance(outcome, Refused):
            raise outcome.error


def _read(row: PolicyRow) -> Policy:
    try:
        return parse_policy(row.document)
    except WalletError as error:
        # Retried until a signer that can read it is there: nothing is decided by another policy meanwhile.
        raise WalletError(
            Reason.SERVICE_UNAVAILABLE, f"the policy in force is not one for this signer: {error.message}"
        ) from error


def _check_version(policy: Policy, in_force: int) -> None:
    if policy.version <= in_force:
        refuse("policy.version", f"is above {in_force}, the version in force", Reason.ALREADY_EXISTS)


def _body(policy: Policy) -> dict[str, Any]:
    return {
        "version": policy.version,
        "name": policy.name,
        "sha256": to_hex(policy.sha256),
        "document": policy.document.decode(),
    }
