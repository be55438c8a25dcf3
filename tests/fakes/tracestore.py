"""Traces in memory."""

from __future__ import annotations

import re
from typing import Any

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from protos.wallet.v1 import tracestore_pb2, tracestore_pb2_grpc
from services.core.errors import Reason, WalletError, refuse
from services.tracestore.otlp import join_records
from services.tracestore.spans import SpanRow, SpanSplitter


class FakeTraceStore(tracestore_pb2_grpc.TraceStoreServicer, trace_service_pb2_grpc.TraceServiceServicer):
    """OTLP in, traces out."""

    def __init__(self) -> None:
        self._splitter = SpanSplitter()
        self._heads: dict[bytes, bytes] = {}
        self._spans: dict[tuple[bytes, bytes, bytes], SpanRow] = {}

    def add(self, request: trace_service_pb2.ExportTraceServiceRequest) -> int:
        """Keep what is well-formed; how many spans were not."""
        batch = self._splitter.split(request.SerializeToString())
        self._heads.update(batch.heads)
        self._spans.update({(row.trace_id, row.span_id, row.sha256): row for row in batch.rows})
        return batch.rejected

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        reply = trace_service_pb2.ExportTraceServiceResponse()
        if rejected := self.add(request):
            reply.partial_success.rejected_spans = rejected
            reply.partial_success.error_message = "malformed"
        return reply

    async def GetTrace(self, request: tracestore_pb2.GetTraceRequest, context: Any) -> tracestore_pb2.Trace:
        if not re.fullmatch("[0-9a-f]{32}", request.trace_id):
            refuse("trace_id", "is 32 lower-case hex digits")
        trace_id = bytes.fromhex(request.trace_id)
        rows = sorted((row for row in self._spans.values() if row.trace_id == trace_id), key=lambda row: row.start_ns)
        if not rows:
            raise WalletError(Reason.NOT_FOUND, "no span of this trace is stored", trace_id=request.trace_id)
        spans = [join_records(self._heads[row.scope_sha256], [row.span]) for row in rows]
        return tracestore_pb2.Trace(trace_id=request.trace_id, resource_spans=spans)
