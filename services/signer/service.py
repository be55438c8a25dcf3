"""The parts of signer, put together over what they need from outside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from opentelemetry import trace

from protos.wallet.v1 import evidence_pb2_grpc, keys_pb2_grpc
from services.core.account_ids import AccountIds
from services.core.errors import Reason, WalletError
from services.runtime.db import Database
from services.runtime.evidence_log import EvidenceLog
from services.signer.checking import Checking
from services.signer.denials import Denials
from services.signer.leaves import Leaves
from services.signer.policy import parse_policy
from services.signer.policy_versions import PolicyVersions
from services.signer.readiness import Readiness
from services.signer.servicer import SignerServicer
from services.signer.settings import SignerSettings
from services.signer.signing import Signing
from services.signer.store import Store
from services.signer.telemetry import SCOPE
from services.signer.workers import WORKER_COMMAND, TokenPool

_log = logging.getLogger(__name__)
_RETRY_S = 1.0
_CACHED_LEAVES = 10_000


class SignerService:
    """`async with SignerService(…) as service:` children run inside; `service.servicer` answers."""

    def __init__(
        self,
        settings: SignerSettings,
        database: Database,
        evidence: evidence_pb2_grpc.EvidenceAsyncStub,
        keys: keys_pb2_grpc.KeysAsyncStub,
        worker_command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        policy = parse_policy(settings.policy_file.read_bytes())
        store = Store(database)
        log = EvidenceLog(evidence)
        denials = Denials(policy, store, log)
        self.pool = TokenPool(settings, worker_command)
        self._leaves = Leaves(keys, self.pool, _CACHED_LEAVES)
        self._policy_versions = PolicyVersions(policy, store, log)
        signing = Signing(
            policy,
            self._policy_versions,
            store,
            log,
            denials,
            self._leaves,
            self.pool,
            AccountIds(settings.telemetry_hmac_key_file.read_bytes()),
            trace.get_tracer(SCOPE.name),
        )
        self.servicer = SignerServicer(
            policy,
            signing,
            Checking(policy, self._policy_versions, denials),
            Readiness(self.pool, self._leaves, log, store, self._policy_versions),
        )
        self._preparing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SignerService:
        await self._store_policy()
        await self.pool.start()
        self._preparing = asyncio.create_task(self._prepare())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.gather(self._preparing, return_exceptions=True)
        await self.pool.stop()

    async def _store_policy(self) -> None:
        """A version number that is another document's stops the start; a missing database does not."""
        try:
            await self._policy_versions.store()
        except WalletError as error:
            if error.reason is not Reason.DATABASE_UNAVAILABLE:
                raise

    async def _prepare(self) -> None:
        """Do before the first request what it would wait for: enter the policy, register the transport key."""
        while True:
            try:
                await self._policy_versions.ensure_entered()
                await self._leaves.register()
            except WalletError as error:
                _log.info("not ready yet: %s", error.reason.name)
            if self._policy_versions.entered and self._leaves.approved:
                return
            await asyncio.sleep(_RETRY_S)
