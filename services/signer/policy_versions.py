"""The policy in force is on the record before it decides: a row of its own, then an entry of the log."""

from __future__ import annotations

import asyncio

from services.core.canonical import canonical_json, to_hex
from services.core.entries import Kind
from services.core.errors import Reason, WalletError
from services.runtime.evidence_log import Entry, EvidenceLog, Refused
from services.runtime.telemetry import current_ids, new_traceparent
from services.signer.policy import Policy
from services.signer.store import PolicyRow, Store


class PolicyVersions:
    def __init__(self, policy: Policy, store: Store, evidence: EvidenceLog) -> None:
        self._policy = policy
        self._store = store
        self._evidence = evidence
        self._row: PolicyRow | None = None
        self._entered = False
        self._entering = asyncio.Lock()

    @property
    def entered(self) -> bool:
        return self._entered

    async def store(self) -> None:
        """Keep the document under its version.

        Raises:
            WalletError: ALREADY_EXISTS if the version number is another document's.
        """
        policy = self._policy
        body = {
            "version": policy.version,
            "name": policy.name,
            "sha256": to_hex(policy.sha256),
            "document": policy.document.decode(),
        }
        row = await self._store.enter_policy(
            PolicyRow(policy.version, policy.sha256, policy.document, new_traceparent(), canonical_json(body))
        )
        if row.sha256 != policy.sha256:
            raise WalletError(
                Reason.ALREADY_EXISTS,
                "the policy's version number is taken by another document",
                field="policy.version",
                rule="one version, one document",
            )
        self._row = row

    async def ensure_entered(self) -> None:
        """Enter the policy in the log, once.

        Raises:
            WalletError: EVIDENCE_UNAVAILABLE, DATABASE_UNAVAILABLE, and what `store` raises.
        """
        if self._entered:
            return
        async with self._entering:
            if self._row is None:
                await self.store()
            assert self._row is not None
            row = self._row
            trace_id, span_id = current_ids(row.traceparent)
            link_id = f"policy:{row.version}:{row.sha256.hex()[:16]}"
            (outcome,) = await self._evidence.append(
                [Entry(link_id, f"policy:{row.version}", Kind.POLICY, trace_id, span_id, row.body)]
            )
            if isinstance(outcome, Refused):
                raise outcome.error
            self._entered = True
