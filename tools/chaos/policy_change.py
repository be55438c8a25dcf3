"""A change of the policy in the middle of the load, and what must be true of it at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from protos.wallet.v1.signer_pb2 import GetPolicyRequest
from protos.wallet.v1.signer_pb2_grpc import SignerStub
from services.core.errors import WalletError
from services.runtime.channel import PeerChannel, as_channel
from services.runtime.db import Database
from services.runtime.settings import ServiceSettings
from tools.chaos.client import GaveUp
from tools.chaos.deciding import OPERATOR, Deciding, Undecided
from tools.chaos.finding import Finding
from tools.chaos.policies import policy_document
from tools.chaos.policy_audit import PolicyAudit
from tools.stack.stack import Stack

_FROM, _TO = 1, 2
_ANSWER_TIMEOUT_S = 10.0


@dataclass
class PolicyChange:
    """From the first version to the second."""

    # Unix, seconds: by then the gateway said that the second is in force.
    told_at: float | None = None
    failure: str = "it was not tried"

    async def run(self, deciding: Deciding, when: asyncio.Event) -> None:
        await when.wait()
        try:
            self.told_at = await deciding.change_policy(policy_document(_TO))
        except (GaveUp, Undecided) as error:
            self.failure = str(error)

    async def audit(self, stack: Stack, signers: Sequence[str], database: Database, log: PolicyAudit) -> Finding:
        """`signers` are the replicas' names; `log` has been read."""
        promise = "a policy that two approvers changed is in force everywhere, and on the record"
        if self.told_at is None:
            return Finding(promise, False, self.failure)
        document = policy_document(_TO)
        faults = log.faults_of_change(document, _TO, OPERATOR)
        faults += [f"the intent of {one} is of a policy that the log did not have" for one in log.unfounded]
        for signer in signers:
            try:
                if await _policy_of(stack, signer) != sha256(document.encode()).digest():
                    faults.append(f"{signer} decides by another")
            except WalletError as error:
                faults.append(f"{signer} does not say by which it decides: {error}")
        late = await database.value(
            # What is signed again or superseded is not decided again.
            "SELECT count(*) FROM signer.register "
            "WHERE attempt = 1 AND supersedes IS NULL AND policy_version = $1 AND registered_at > $2",
            _FROM,
            datetime.fromtimestamp(self.told_at, UTC),
        )
        if late:
            faults.append(f"{late} transactions were registered by version {_FROM} after that")
        named = [sum(intent.version == version for intent in log.intents.values()) for version in (_FROM, _TO)]
        shown = f"{named[0]:,} links decided by version {_FROM}, {named[1]:,} by version {_TO}"
        return Finding(promise, not faults, "; ".join(faults[:5]) or shown)


async def _policy_of(stack: Stack, signer: str) -> bytes:
    """SHA-256 of the policy that this replica decides by. Raises WalletError."""
    foundation = stack.foundation
    peers = {"signer": foundation.addresses[signer]}
    channel = PeerChannel("signer", ServiceSettings(tls_dir=foundation.tls / "gateway", peers=peers))
    try:
        policy = await SignerStub(as_channel(channel)).GetPolicy(GetPolicyRequest(), timeout=_ANSWER_TIMEOUT_S)
    finally:
        await channel.close()
    return bytes(policy.sha256)
