"""Evidence as the gateway has it: links and bundles that the test put there, and approvals that are entered."""

from __future__ import annotations

from typing import Any

from protos.wallet.v1 import evidence_pb2, evidence_pb2_grpc
from services.core.errors import Reason, WalletError
from tests.fakes.script import Script


class FakeLinks(evidence_pb2_grpc.EvidenceServicer):
    def __init__(self) -> None:
        self.script = Script()
        self.links: dict[str, evidence_pb2.Link] = {}
        self.bundles: dict[str, bytes] = {}
        self.waits_ms: list[int] = []
        self.appended: list[evidence_pb2.AppendEntryRequest] = []

    async def AppendEntries(
        self, request: evidence_pb2.AppendEntriesRequest, context: Any
    ) -> evidence_pb2.AppendEntriesResponse:
        self.script.begin("AppendEntries")
        reply = evidence_pb2.AppendEntriesResponse()
        for entry in request.entries:
            reply.results.add(appended=self._append(entry))
        await self.script.end("AppendEntries")
        return reply

    def _append(self, entry: evidence_pb2.AppendEntryRequest) -> evidence_pb2.AppendedEntry:
        for index, stored in enumerate(self.appended):
            if (stored.link_id, stored.entry_id) == (entry.link_id, entry.entry_id):
                assert stored.body == entry.body, "another body under the same entry id"
                return evidence_pb2.AppendedEntry(index=index, already_stored=True)
        self.appended.append(entry)
        return evidence_pb2.AppendedEntry(index=len(self.appended) - 1)

    async def GetLink(self, request: evidence_pb2.GetLinkRequest, context: Any) -> evidence_pb2.Link:
        if request.link_id not in self.links:
            raise WalletError(Reason.NOT_FOUND, "no such link", field="link_id")
        return self.links[request.link_id]

    async def GetBundle(self, request: evidence_pb2.GetBundleRequest, context: Any) -> evidence_pb2.Bundle:
        self.waits_ms.append(request.wait_ms)
        if request.link_id not in self.bundles:
            raise WalletError(Reason.NOT_FOUND, "no such link", field="link_id")
        return evidence_pb2.Bundle(document=self.bundles[request.link_id])

    async def GetEvidenceStatus(
        self, request: evidence_pb2.GetEvidenceStatusRequest, context: Any
    ) -> evidence_pb2.EvidenceStatus:
        self.script.begin("GetEvidenceStatus")
        return evidence_pb2.EvidenceStatus(appending=True, tree_size=5, checkpoint_size=5)
