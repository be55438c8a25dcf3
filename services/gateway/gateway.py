"""The parts of a running gateway, wired."""

from __future__ import annotations

import asyncio

from services.gateway.acceptance import Acceptance
from services.gateway.approval_log import ApprovalLog
from services.gateway.approval_rows import ApprovalRows
from services.gateway.approvals import Approvals
from services.gateway.cancellation import Cancellation
from services.gateway.chain_changes import ChainChanges
from services.gateway.chain_health import ChainHealth
from services.gateway.changes import Changes
from services.gateway.deciding import Deciding
from services.gateway.dispatcher import Dispatcher
from services.gateway.duty import perform
from services.gateway.ending import Ending
from services.gateway.failing import Failing
from services.gateway.follower import Follower
from services.gateway.gaps import GapRepair
from services.gateway.identifier import IdentifierSource
from services.gateway.leases import Leases
from services.gateway.peers import Peers
from services.gateway.personal import PersonalVault
from services.gateway.policy_changes import PolicyChanges
from services.gateway.policy_rows import PolicyRows
from services.gateway.progress import Progress
from services.gateway.replacement_rows import ReplacementRows
from services.gateway.replacing import Replacing
from services.gateway.saga import Saga
from services.gateway.settings import GatewaySettings
from services.gateway.signatures import Signatures
from services.gateway.store import Store
from services.gateway.submissions import Submissions
from services.gateway.superseding_rows import SupersedingRows
from services.gateway.transfer import Transfer
from services.gateway.views import TransferView, transfer_view
from services.runtime.attributes import WALLET_CHAIN_ID
from services.runtime.database_clock import DatabaseClock
from services.runtime.db import Database
from services.runtime.metric_names import WALLET_CHAIN_BROKEN, WALLET_DISPATCHER_QUEUE_DEPTH, WALLET_NONCE_GAPS
from services.runtime.metrics import observe

_GAPS_EVERY_S = 3.0
_POLICIES_EVERY_S = 3.0


class Gateway:
    def __init__(self, database: Database, peers: Peers, vault: PersonalVault, settings: GatewaySettings) -> None:
        self.store = store = Store(database)
        self.peers = peers
        self.changes = changes = Changes()
        self.identifiers = IdentifierSource()
        self.leases = leases = Leases(database)
        self._chains = ChainHealth(peers)
        self._clock = clock = DatabaseClock(database)
        approval_rows, superseding = ApprovalRows(database), SupersedingRows(database, clock)
        approval_log = ApprovalLog(approval_rows, peers)
        self.approvals = Approvals(store, approval_rows, approval_log, vault)
        self.dispatcher = Dispatcher(leases, self._saga(database, superseding, vault))
        wake = self.dispatcher.wake
        self.acceptance = Acceptance(store, peers, vault, self.identifiers, self._chains, clock, wake)
        self.cancellation = Cancellation(store, superseding, vault, changes, self.dispatcher)
        self.policy_changes = PolicyChanges(
            PolicyRows(database), approval_rows, approval_log, peers, settings.policy_proposal_valid_s
        )
        self._gaps = GapRepair(superseding, peers, self._chains, clock, wake, settings.gap_after_s)
        self._follower = Follower(leases, ChainChanges(database), peers, changes, self.dispatcher.owner)

    def _saga(self, database: Database, superseding: SupersedingRows, vault: PersonalVault) -> Saga:
        peers, changes, progress = self.peers, self.changes, Progress(database)
        signatures, submissions = Signatures(peers, vault), Submissions(peers)
        return Saga(
            progress,
            peers,
            self._chains,
            changes,
            deciding=Deciding(progress, peers, signatures, self.approvals, changes),
            signatures=signatures,
            submissions=submissions,
            replacing=Replacing(ReplacementRows(database), peers, signatures, submissions, changes),
            ending=Ending(progress, superseding, changes),
            failing=Failing(progress, superseding, peers, changes, self._clock),
        )

    def view(self, transfer: Transfer) -> TransferView:
        return transfer_view(transfer, self._chains.stall(transfer.chain_id, transfer.state))

    def observe(self) -> None:
        """Have what there is now read by whoever collects metrics."""
        chains, gaps = self._chains, self._gaps
        observe(WALLET_DISPATCHER_QUEUE_DEPTH, lambda: [(self.dispatcher.due_accounts, None)])
        observe(WALLET_NONCE_GAPS, lambda: [(count, None)] if (count := gaps.open_gaps()) is not None else [])
        observe(WALLET_CHAIN_BROKEN, lambda: [(1, {WALLET_CHAIN_ID: name}) for name in chains.broken_chains])

    async def run(self) -> None:
        """Saga, follower, and the duties that one worker of all has; until cancelled."""
        owner, leases = self.dispatcher.owner, self.leases
        async with asyncio.TaskGroup() as group:
            group.create_task(self.dispatcher.run())
            group.create_task(self._follower.run())
            group.create_task(self._chains.run())
            group.create_task(perform(leases, owner, "gaps", _GAPS_EVERY_S, self._gaps.run))
            group.create_task(perform(leases, owner, "policies", _POLICIES_EVERY_S, self.policy_changes.run))
