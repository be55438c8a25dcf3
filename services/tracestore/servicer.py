"""Protobuf in and out: OTLP's TraceService and the wallet's TraceStore."""

from __future__ import annotations

import re

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from protos.wallet.v1 import tracestore_pb2, tracestore_pb2_grpc
from services.core.errors import Reason, WalletError, refuse
from services.tracestore.spans import join_span, split_request
from services.tracestore.store import SpanStore
from services.tracestore.writer import SpanWriter

_TRACE_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


class TraceServicer(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, writer: SpanWriter) -> None:
        self._writer = writer

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        batch = split_request(request)
        await self._writer.append(batch)
        reply = trace_service_pb2.ExportTraceServiceResponse()
        if batch.rejected:
            reply.partial_success.rejected_spans = batch.rejected
            reply.partial_success.error_message = batch.rejection
        return reply


class TraceStoreServicer(tracestore_pb2_grpc.TraceStoreServicer):
    def __init__(self, store: SpanStore) -> None:
        self._store = store

    async def GetTrace(
        self, request: tracestore_pb2.GetTraceRequest, context: grpc.ServicerContext
    ) -> tracestore_pb2.Trace:
        if not _TRACE_ID.fullmatch(request.trace_id):
            refuse("trace_id", "is 32 lower-case hex digits")
        spans = await self._store.trace(bytes.fromhex(request.trace_id))
        if not spans:
            raise WalletError(Reason.NOT_FOUND, "no span of this trace is stored", trace_id=request.trace_id)
        return tracestore_pb2.Trace(
            trace_id=request.trace_id, resource_spans=[join_span(scope, span) for scope, span in spans]
        )
