"""Could a signature be made now, and if not, what is missing?"""

from __future__ import annotations

from typing import NamedTuple

from services.core.errors import WalletError
from services.runtime.evidence_log import EvidenceLog
from services.signer.leaves import Leaves
from services.signer.policy_versions import PolicyVersions
from services.signer.store import Store
from services.signer.workers import TokenPool

_TIMEOUT_S = 2.0


class SignerState(NamedTuple):
    token_ready: bool
    evidence_ready: bool
    database_ready: bool
    transport_key_approved: bool
    missing: list[str]  # one sentence each
    token_label: str
    workers: int


class Readiness:
    def __init__(
        self, pool: TokenPool, leaves: Leaves, evidence: EvidenceLog, store: Store, policy_versions: PolicyVersions
    ) -> None:
        self._pool = pool
        self._leaves = leaves
        self._evidence = evidence
        self._store = store
        self._policy_versions = policy_versions

    async def state(self) -> SignerState:
        """Ask everything that a signature needs. Never raises."""
        missing: list[str] = []
        if not self._pool.ready:
            missing.append(f"token: {self._pool.refusal.message}")
        log_missing = await self._evidence.missing(_TIMEOUT_S)
        missing += log_missing
        database_missing = await self._database_missing()
        missing += database_missing
        if not log_missing and not database_missing:
            try:
                await self._policy_versions.entered_policy()
            except WalletError as error:
                missing.append(f"policy: {error.message}")
        if self._pool.ready and not self._leaves.approved:
            missing += await self._transport_key_missing()
        return SignerState(
            token_ready=self._pool.ready,
            evidence_ready=not log_missing,
            database_ready=not database_missing,
            transport_key_approved=self._leaves.approved,
            missing=missing,
            token_label=self._pool.identity.label if self._pool.ready else "",
            workers=self._pool.size,
        )

    async def _database_missing(self) -> list[str]:
        try:
            await self._store.ping()
        except WalletError as error:
            return [f"database: {error.message}"]
        return []

    async def _transport_key_missing(self) -> list[str]:
        try:
            await self._leaves.register()
        except WalletError as error:
            return [f"keys: {error.message}"]
        return [] if self._leaves.approved else ["keys: an operator has not approved this signer's transport key"]
