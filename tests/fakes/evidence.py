"""A log in memory: the real rules for entries and links, no database, no checkpoints, and faults on demand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from protos.wallet.v1 import evidence_pb2, evidence_pb2_grpc
from services.core.canonical import parse_canonical
from services.core.entries import Leaf
from services.core.errors import Reason, WalletError
from services.evidence.links import Appended, Link
from services.evidence.placement import Append, Placement, SameId
from services.evidence.store import NewEntry
from services.evidence.tree import TreeEdge
from services.runtime.rpc_errors import to_item_error


@dataclass
class StoredEntry:
    request: evidence_pb2.AppendEntryRequest
    reply: evidence_pb2.AppendedEntry
    entry: NewEntry

    @property
    def body(self) -> dict[str, Any]:
        return parse_canonical(self.request.body)


class FakeEvidence(evidence_pb2_grpc.EvidenceServicer):
    def __init__(self) -> None:
        self.available = True
        # After this many more replies, entries are stored and the reply is lost.
        self.replies_left: int | None = None
        self.appends = 0
        self.appended = asyncio.Condition()
        self._edge = TreeEdge()
        self._links: dict[str, Link] = {}
        self._entries: list[StoredEntry] = []

    def link(self, link_id: str) -> list[StoredEntry]:
        return [entry for entry in self._entries if entry.request.link_id == link_id]

    @property
    def entries(self) -> list[StoredEntry]:
        return list(self._entries)

    async def AppendEntry(self, request: evidence_pb2.AppendEntryRequest, context: Any) -> evidence_pb2.AppendedEntry:
        self._check_available()
        reply = self._append(request)
        async with self.appended:
            self.appends += 1
            self.appended.notify_all()
        if self.replies_left is not None:
            if self.replies_left == 0:
                raise WalletError(Reason.SERVICE_UNAVAILABLE, "the reply is lost")
            self.replies_left -= 1
        return reply

    async def AppendEntries(
        self, request: evidence_pb2.AppendEntriesRequest, context: Any
    ) -> evidence_pb2.AppendEntriesResponse:
        self._check_available()
        reply = evidence_pb2.AppendEntriesResponse()
        for entry in request.entries:
            try:
                reply.results.add(appended=self._append(entry))
            except WalletError as error:
                failure = evidence_pb2.AppendFailure(error=to_item_error(error))
                if error.reason is Reason.ENTRY_CONFLICT:
                    failure.stored_body = self._entries[int(error.details["index"])].request.body
                reply.results.add(failure=failure)
        return reply

    async def GetLink(self, request: evidence_pb2.GetLinkRequest, context: Any) -> evidence_pb2.Link:
        stored = self.link(request.link_id)
        if not stored:
            raise WalletError(Reason.NOT_FOUND, "the log holds no entry of this link", field="link_id")
        reply = evidence_pb2.Link(
            link_id=request.link_id,
            trace_id=stored[0].request.trace_id,
            state=self._links[request.link_id].state,
        )
        for one in stored:
            added = reply.entries.add(
                index=one.entry.index,
                step=one.entry.step,
                kind=one.request.kind,
                entry_id=one.entry.entry_id,
                leaf=one.entry.leaf,
                body=one.entry.body,
                salt=one.entry.salt,
            )
            added.at.FromDatetime(Leaf.decode(one.entry.leaf).at)
        return reply

    async def GetEvidenceStatus(
        self, request: evidence_pb2.GetEvidenceStatusRequest, context: Any
    ) -> evidence_pb2.EvidenceStatus:
        return evidence_pb2.EvidenceStatus(
            appending=self.available,
            missing=[] if self.available else ["the fake was told to be unavailable"],
            tree_size=len(self._entries),
        )

    def _check_available(self) -> None:
        if not self.available:
            raise WalletError(Reason.EVIDENCE_UNAVAILABLE, Reason.EVIDENCE_UNAVAILABLE.meaning)

    def _append(self, request: evidence_pb2.AppendEntryRequest) -> evidence_pb2.AppendedEntry:
        append = Append(
            request.link_id, request.entry_id, request.kind, request.trace_id, request.span_id, request.body
        )
        self._links.setdefault(request.link_id, Link())
        placement = Placement(self._edge, datetime.now(UTC), self._links, nodes_required=2)
        outcome = placement.place(append)
        if isinstance(outcome, WalletError):
            raise outcome
        if isinstance(outcome, SameId):
            stored = self._entries[outcome.stored.index]
            if stored.request.body != request.body:
                raise WalletError(
                    Reason.ENTRY_CONFLICT,
                    Reason.ENTRY_CONFLICT.meaning,
                    field="entry_id",
                    index=outcome.stored.index,
                )
            return _reply(replace(outcome.stored, already_stored=True))
        reply = _reply(outcome)
        self._entries.append(StoredEntry(request, reply, placement.entries[0]))
        return reply


def _reply(appended: Appended) -> evidence_pb2.AppendedEntry:
    reply = evidence_pb2.AppendedEntry(
        index=appended.index,
        step=appended.step,
        leaf_hash=appended.leaf_hash,
        already_stored=appended.already_stored,
    )
    reply.at.FromDatetime(appended.at)
    return reply
