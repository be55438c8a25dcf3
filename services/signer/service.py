"""The parts of signer, put together over what they need from outside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from opentelemetry import trace

from protos.wallet.v1 import evidence_pb2_grpc, keys_pb2_grpc
from services.core.account_ids import AccountIds
from services.core.errors import Code, WalletError
from services.runtime.db import Database
from services.runtime.evidence_log import EvidenceLog
from services.signer.approvals import ApprovalLog
from services.signer.checking import Checking
from services.signer.denials import Denials
from services.signer.leaves import Leaves
from services.signer.policy_store import PolicyStore
from services.signer.policy_versions import PolicyVersions
from services.signer.readiness import Readiness
from services.signer.registering import Registering
from services.signer.replacement_store import ReplacementStore
from services.signer.servicer import SignerServicer
from services.signer.settings import SignerSettings
from services.signer.signing import Signing
from services.signer.store import Store
from services.signer.telemetry import SCOPE
from services.signer.velocity_store import VelocityStore
from services.signer.workers import WORKER_COMMAND, TokenPool

_log = logging.getLogger(__name__)
_LOOK_S = 1.0  # until another replica's policy is seen here without a request that needs it
_CACHED_LEAVES = 10_000


class SignerService:
    """`async with SignerService(…) as service:` children run inside; `service.servicer` answers.

    `appending` leads to the replica of the log that appends, `reading` to any.
    """

    def __init__(
        self,
        settings: SignerSettings,
        database: Database,
        appending: evidence_pb2_grpc.EvidenceAsyncStub,
        reading: evidence_pb2_grpc.EvidenceAsyncStub,
        keys: keys_pb2_grpc.KeysAsyncStub,
        worker_command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        store, velocity = Store(database), VelocityStore(database)
        log, approvals = EvidenceLog(appending), ApprovalLog(reading)
        denials = Denials(store, log)
        self.pool = TokenPool(settings, worker_command)
        self._leaves = Leaves(keys, self.pool, _CACHED_LEAVES)
        self._policy_versions = PolicyVersions(settings.policy_file.read_bytes(), PolicyStore(database), log, approvals)
        registering = Registering(
            self._policy_versions, store, velocity, ReplacementStore(database), approvals, denials, self._leaves
        )
        signing = Signing(
            registering,
            store,
            log,
            self._leaves,
            self.pool,
            AccountIds(settings.telemetry_hmac_key_file.read_bytes()),
            trace.get_tracer(SCOPE.name),
        )
        self.servicer = SignerServicer(
            self._policy_versions,
            signing,
            Checking(self._policy_versions, velocity, denials),
            Readiness(self.pool, self._leaves, log, store, self._policy_versions),
        )
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SignerService:
        await self._load_policy()
        await self.pool.start()
        self._keeping = asyncio.create_task(self._keep_ready())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self.pool.stop()

    async def _load_policy(self) -> None:
        """A policy file that is none stops the start of an empty database; a missing database does not."""
        try:
            await self._policy_versions.policy()
        except WalletError as error:
            if error.reason.code is not Code.UNAVAILABLE:
                raise

    async def _keep_ready(self) -> None:
        """Do before a request what it would wait for: enter the policy in force, register the transport key."""
        while True:
            try:
                await self._policy_versions.refresh()
                await self._policy_versions.entered_policy()
                if not self._leaves.approved:
                    await self._leaves.register()
            except WalletError as error:
                _log.info("not ready: %s", error.reason.name)
            await asyncio.sleep(_LOOK_S)
