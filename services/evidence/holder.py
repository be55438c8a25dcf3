"""The replica that holds the log, as one that has forgotten its past asks it."""

from __future__ import annotations

from protos.wallet.v1 import evidence_pb2, evidence_pb2_grpc
from services.core.errors import WalletError

_TIMEOUT_S = 2.0


class Holder:
    """`stub` leads to the replica that reports APPENDING."""

    def __init__(self, stub: evidence_pb2_grpc.EvidenceAsyncStub) -> None:
        self._stub = stub

    async def checkpoint(self) -> str | None:
        """The note of its newest checkpoint, while it appends: so it knows the log's past, and has found it there."""
        try:
            newest = await self._stub.GetCheckpoint(evidence_pb2.GetCheckpointRequest(), timeout=_TIMEOUT_S)
            status = await self._stub.GetEvidenceStatus(evidence_pb2.GetEvidenceStatusRequest(), timeout=_TIMEOUT_S)
        except WalletError:
            return None
        return newest.note.decode() if status.appending and newest.note else None
