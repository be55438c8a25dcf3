"""Traces in memory."""

from __future__ import annotations

from typing import Any

from protos.wallet.v1 import tracestore_pb2, tracestore_pb2_grpc


class FakeTraceStore(tracestore_pb2_grpc.TraceStoreServicer):
    def __init__(self) -> None:
        self.traces: dict[str, list[bytes]] = {}

    async def GetTrace(self, request: tracestore_pb2.GetTraceRequest, context: Any) -> tracestore_pb2.Trace:
        spans = self.traces.get(request.trace_id, [])
        return tracestore_pb2.Trace(trace_id=request.trace_id, resource_spans=spans)
