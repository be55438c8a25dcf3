"""`wallet.v1.Evidence` ⇄ domain."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import grpc
from opentelemetry import trace

from protos.wallet.v1 import evidence_pb2 as pb
from protos.wallet.v1 import evidence_pb2_grpc
from services.core.errors import Reason, WalletError, refuse
from services.core.notes import NoteKey
from services.evidence.bundles import BundleMaker
from services.evidence.checkpoints import CheckpointCutter
from services.evidence.links import Appended
from services.evidence.placement import Append
from services.evidence.sequencer import Conflict, Outcome, Sequencer
from services.evidence.writers import WRITERS, Writers, check_writer
from services.runtime import attributes
from services.runtime.mtls import caller_identity
from services.runtime.rpc_errors import to_item_error

MAX_ENTRIES = 5_000
MAX_BATCH_BYTES = 16 << 20
MAX_WAIT_MS = 5_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Context = grpc.aio.ServicerContext[Any, Any]


class EvidenceServicer(evidence_pb2_grpc.EvidenceServicer):
    def __init__(
        self,
        sequencer: Sequencer,
        bundles: BundleMaker,
        checkpoints: CheckpointCutter,
        key: NoteKey,
        writers: Writers = WRITERS,
    ) -> None:
        self._writers = writers
        self._sequencer = sequencer
        self._bundles = bundles
        self._checkpoints = checkpoints
        self._key = key

    async def AppendEntry(self, request: pb.AppendEntryRequest, context: Context) -> pb.AppendedEntry:
        self._check_writer(context, {request.kind})
        (outcome,) = await self._sequencer.append([_to_append(request)])
        if isinstance(outcome, Conflict):
            raise outcome.error
        if isinstance(outcome, WalletError):
            raise outcome
        span = trace.get_current_span()
        span.set_attribute(attributes.WALLET_EVIDENCE_INDEX, outcome.index)
        span.set_attribute(attributes.WALLET_EVIDENCE_KIND, request.kind)
        reply = pb.AppendedEntry()
        _write_appended(reply, outcome)
        return reply

    async def AppendEntries(self, request: pb.AppendEntriesRequest, context: Context) -> pb.AppendEntriesResponse:
        if not 1 <= len(request.entries) <= MAX_ENTRIES:
            refuse("entries", f"has 1 to {MAX_ENTRIES} entries")
        # Each look at a field of a message makes a copy of it, so the bodies are counted after they were taken out.
        appends = [_to_append(entry) for entry in request.entries]
        if sum([len(append.body) for append in appends]) > MAX_BATCH_BYTES:
            refuse("entries", f"has bodies of at most {MAX_BATCH_BYTES} bytes together", Reason.PAYLOAD_TOO_LARGE)
        self._check_writer(context, {append.kind for append in appends})
        outcomes = await self._sequencer.append(appends)
        response = pb.AppendEntriesResponse()
        for outcome in outcomes:
            _write_outcome(response.results.add(), outcome)
        return response

    def _check_writer(self, context: Context, kinds: set[str]) -> None:
        check_writer(self._writers, caller_identity(context.auth_context()), kinds)

    async def GetLink(self, request: pb.GetLinkRequest, context: Context) -> pb.Link:
        link = await self._bundles.link(request.link_id)
        newest = self._checkpoints.newest
        reply = pb.Link(
            link_id=link.link_id,
            trace_id=link.trace_id,
            state=link.state,
            checkpoint_size=newest.tree_size if newest else 0,
        )
        for leaf, entry in link.entries:
            added = reply.entries.add(
                index=entry.index,
                step=entry.step,
                kind=leaf.kind,
                entry_id=entry.entry_id,
                leaf=entry.leaf,
                body=entry.body or b"",
                salt=entry.salt or b"",
            )
            added.at.FromDatetime(leaf.at)
        return reply

    async def GetBundle(self, request: pb.GetBundleRequest, context: Context) -> pb.Bundle:
        if request.wait_ms > MAX_WAIT_MS:
            refuse("wait_ms", f"is at most {MAX_WAIT_MS}")
        return pb.Bundle(document=await self._bundles.bundle(request.link_id, request.wait_ms / 1000))

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Context) -> pb.Checkpoint:
        newest = self._checkpoints.newest
        if newest is None:
            return pb.Checkpoint(verifier_key=self._key.vkey)
        return pb.Checkpoint(
            note=newest.note.encode(),
            tree_size=newest.tree_size,
            root_hash=newest.root_hash,
            verifier_key=self._key.vkey,
        )

    async def GetEvidenceStatus(self, request: pb.GetEvidenceStatusRequest, context: Context) -> pb.EvidenceStatus:
        missing = self._sequencer.missing()
        appending = not missing
        if self._checkpoints.trouble:
            missing.append(self._checkpoints.trouble)
        tree_size = self._sequencer.size
        if tree_size is None:
            try:
                tree_size = await self._bundles.size()
            except WalletError:
                # Why is among the missing already, in the sequencer's words.
                tree_size = 0
        newest = self._checkpoints.newest
        return pb.EvidenceStatus(
            appending=appending,
            missing=missing,
            tree_size=tree_size,
            checkpoint_size=newest.tree_size if newest else 0,
        )


def _to_append(request: pb.AppendEntryRequest) -> Append:
    return Append(request.link_id, request.entry_id, request.kind, request.trace_id, request.span_id, request.body)


def _write_appended(reply: pb.AppendedEntry, appended: Appended) -> None:
    """Into a message that is in its place already: a finished one would be copied there."""
    reply.index = appended.index
    reply.step = appended.step
    reply.leaf_hash = appended.leaf_hash
    reply.already_stored = appended.already_stored
    reply.at.seconds, reply.at.nanos = _since_epoch(appended.at)


@lru_cache(maxsize=16)  # the entries of one commit share their time
def _since_epoch(at: datetime) -> tuple[int, int]:
    """The two fields of a Timestamp."""
    since = at - _EPOCH
    return since.days * 86_400 + since.seconds, since.microseconds * 1_000


def _write_outcome(result: pb.AppendResult, outcome: Outcome) -> None:
    if isinstance(outcome, Appended):
        _write_appended(result.appended, outcome)
    elif isinstance(outcome, Conflict):
        result.failure.error.CopyFrom(to_item_error(outcome.error))
        result.failure.stored_body = outcome.stored_body or b""
    else:
        result.failure.error.CopyFrom(to_item_error(outcome))
