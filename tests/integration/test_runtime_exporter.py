"""Spans on their way to the replicas of tracestore."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from services.runtime.server import GrpcServer
from services.runtime.settings import ServiceSettings
from services.runtime.telemetry import open_exporter


class Spans(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.exports = 0

    async def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        self.exports += 1
        return trace_service_pb2.ExportTraceServiceResponse()


def tracestore(dev_ca: Callable[[str], Path], spans: Spans) -> GrpcServer:
    settings = ServiceSettings(listen="127.0.0.1:0", tls_dir=dev_ca("tracestore"), shutdown_grace_s=0.1)
    server = GrpcServer("tracestore", settings, [])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(spans, server.grpc)
    return server


async def test_spans_go_to_every_replica_and_past_one_that_is_gone(dev_ca: Callable[[str], Path]) -> None:
    span = TracerProvider().get_tracer("test").start_span("one")
    span.end()
    assert isinstance(span, ReadableSpan)
    first, second = Spans(), Spans()
    async with tracestore(dev_ca, first) as staying:
        async with tracestore(dev_ca, second) as going:
            endpoint = f"ipv4:127.0.0.1:{staying.port},127.0.0.1:{going.port}"
            exporter = open_exporter(endpoint, ServiceSettings(tls_dir=dev_ca("gateway")))

            async def export() -> SpanExportResult:
                return await asyncio.to_thread(exporter.export, [span])

            for _ in range(100):
                assert await export() is SpanExportResult.SUCCESS
                if first.exports and second.exports:
                    break
            assert first.exports
            assert second.exports
        before = first.exports
        for _ in range(4):
            assert await export() is SpanExportResult.SUCCESS
        assert first.exports == before + 4
        await asyncio.to_thread(exporter.shutdown)
