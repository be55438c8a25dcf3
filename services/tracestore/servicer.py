"""Protobuf in and out: OTLP's TraceService and LogsService, and the wallet's TraceStore.

What is exported arrives as bytes, not as messages: it is kept as it came.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from protos.wallet.v1 import tracestore_pb2, tracestore_pb2_grpc
from services.core.errors import Reason, WalletError, refuse
from services.runtime.channel import MAX_MESSAGE_BYTES
from services.runtime.metric_names import WALLET_TRACESTORE_SPANS
from services.runtime.metrics import counter
from services.tracestore.chunks import by_size
from services.tracestore.hot import HotStore
from services.tracestore.logs import LogBatch, split_logs
from services.tracestore.otlp import join_records
from services.tracestore.spans import SpanBatch, SpanSplitter
from services.tracestore.writer import BatchWriter

TRACE_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
LOGS_SERVICE = "opentelemetry.proto.collector.logs.v1.LogsService"
_TRACE_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
# A reply holds tags and lengths besides.
_MAX_TRACE_BYTES = MAX_MESSAGE_BYTES - 1024 * 1024
_log = logging.getLogger(__name__)
_committed = counter(WALLET_TRACESTORE_SPANS)


class ExportServicer:
    """`server.grpc.add_generic_rpc_handlers(ExportServicer(…).handlers())`."""

    def __init__(self, spans: BatchWriter[SpanBatch], logs: BatchWriter[LogBatch]) -> None:
        self._spans = spans
        self._logs = logs
        self._splitter = SpanSplitter()

    def handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        return tuple(
            grpc.method_handlers_generic_handler(service, {"Export": grpc.unary_unary_rpc_method_handler(behaviour)})
            for service, behaviour in ((TRACE_SERVICE, self._export_spans), (LOGS_SERVICE, self._export_logs))
        )

    async def _export_spans(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        batch = self._splitter.split(request)
        await self._spans.append(batch)
        _committed.add(len(batch.rows))
        reply = ExportTraceServiceResponse()
        if batch.rejected:
            _log_rejection(batch)
            reply.partial_success.rejected_spans = batch.rejected
            reply.partial_success.error_message = batch.rejection
        return reply.SerializeToString()

    async def _export_logs(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        batch = split_logs(request)
        await self._logs.append(batch)
        reply = ExportLogsServiceResponse()
        if batch.rejected:
            _log_rejection(batch)
            reply.partial_success.rejected_log_records = batch.rejected
            reply.partial_success.error_message = batch.rejection
        return reply.SerializeToString()


class TraceStoreServicer(tracestore_pb2_grpc.TraceStoreServicer):
    def __init__(self, hot: HotStore) -> None:
        self._hot = hot

    async def GetTrace(
        self, request: tracestore_pb2.GetTraceRequest, context: grpc.ServicerContext
    ) -> tracestore_pb2.Trace:
        resource_spans: list[bytes] = []
        size_bytes = 0
        async for page in self._hot.trace(_trace_id(request.trace_id)):
            spans = [join_records(span.head, [span.content]) for span in page]
            size_bytes += sum(map(len, spans))
            if size_bytes > _MAX_TRACE_BYTES:
                raise WalletError(
                    Reason.PAYLOAD_TOO_LARGE,
                    "the trace is larger than one message: read it through Jaeger",
                    field="trace_id",
                    rule=f"names a trace of at most {_MAX_TRACE_BYTES} bytes",
                )
            resource_spans += spans
        if not resource_spans:
            raise WalletError(Reason.NOT_FOUND, "no span of this trace is stored", trace_id=request.trace_id)
        return tracestore_pb2.Trace(trace_id=request.trace_id, resource_spans=resource_spans)

    async def GetTraceLogs(
        self, request: tracestore_pb2.GetTraceLogsRequest, context: grpc.ServicerContext
    ) -> AsyncIterator[tracestore_pb2.TraceLogs]:
        async for page in self._hot.trace_logs(_trace_id(request.trace_id)):
            for records in by_size(page):
                yield tracestore_pb2.TraceLogs(
                    resource_logs=[join_records(record.head, [record.content]) for record in records]
                )


def _trace_id(text: str) -> bytes:
    if not _TRACE_ID.fullmatch(text):
        refuse("trace_id", "is 32 lower-case hex digits")
    return bytes.fromhex(text)


def _log_rejection(batch: SpanBatch | LogBatch) -> None:
    # Not every exporter tells what the reply says.
    _log.warning("%d records of an export were refused: %s", batch.rejected, batch.rejection)
