"""tracestore as a process on a real PostgreSQL, and callers of it over mTLS."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, TracesData

from protos.jaeger.storage.v2 import dependency_storage_pb2_grpc, trace_storage_pb2, trace_storage_pb2_grpc
from protos.wallet.v1 import tracestore_pb2, tracestore_pb2_grpc
from services.core.errors import WalletError
from services.runtime.channel import PeerChannel, as_channel
from services.runtime.mtls import channel_credentials
from services.runtime.settings import ServiceSettings
from tests.integration.dependencies import OwnPostgres
from tools.stack.authority import Authority

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@dataclass
class Store:
    """What is needed to run tracestore and to call it."""

    postgres: OwnPostgres
    authority: Authority
    database: dict[str, str]
    port: int
    log: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def settings(self, caller: str) -> ServiceSettings:
        return ServiceSettings(tls_dir=self.authority.issue(caller), peers={"tracestore": self.address})

    def environment(self, service: str) -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "WALLET_TLS_DIR": str(self.authority.issue(service)),
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://127.0.0.1:{self.port}",
        }

    @asynccontextmanager
    async def stock_channel(self, caller: str) -> AsyncIterator[grpc.aio.Channel]:
        """gRPC as it is unless told otherwise: messages up to 4 MiB come in, any size goes out."""
        options = [("grpc.ssl_target_name_override", "tracestore"), ("grpc.max_send_message_length", -1)]
        credentials = channel_credentials(self.authority.issue(caller))
        async with grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options=options) as channel:
            yield channel

    def _start(self, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "services.tracestore"]
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[subprocess.Popen[bytes]]:
        environment = {
            **self.environment("tracestore"),
            **self.database,
            "WALLET_LISTEN": self.address,
        }
        process = self._start(environment)
        try:
            channel = PeerChannel("tracestore", self.settings("gateway"))
            for _ in range(600):
                try:
                    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
                    break
                except WalletError:
                    assert process.poll() is None, self.log.read_text()
                    await asyncio.sleep(0.05)
            else:
                raise AssertionError(self.log.read_text())
            await channel.close()
            yield process
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)


@contextmanager
def a_store(directory: Path, postgres: OwnPostgres) -> Iterator[Store]:
    """Its database migrated; no process yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    database = postgres.migrated("tracestore").environment
    yield Store(postgres, Authority(directory / "tls"), database, port, directory / "log")


class Client:
    """One caller of the store."""

    def __init__(self, store: Store, caller: str = "gateway") -> None:
        self.store = store
        self.channel = PeerChannel("tracestore", store.settings(caller))
        self._export = trace_service_pb2_grpc.TraceServiceStub(self.channel).Export
        self._export_logs = logs_service_pb2_grpc.LogsServiceStub(self.channel).Export
        wallet: Any = tracestore_pb2_grpc.TraceStoreStub(as_channel(self.channel))
        self.get_trace, self.get_trace_logs = wallet.GetTrace, wallet.GetTraceLogs
        self.jaeger: Any = trace_storage_pb2_grpc.TraceReaderStub(as_channel(self.channel))
        self.dependencies: Any = dependency_storage_pb2_grpc.DependencyReaderStub(as_channel(self.channel))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def export(self, *spans: Span, service: str = "signer") -> ExportTraceServiceResponse:
        reply: ExportTraceServiceResponse = await self._export(request_of(*spans, service=service), timeout=30)
        return reply

    async def trace(self, trace_id: bytes) -> list[ResourceSpans]:
        reply = await self.get_trace(tracestore_pb2.GetTraceRequest(trace_id=trace_id.hex()), timeout=30)
        assert reply.trace_id == trace_id.hex()
        return [ResourceSpans.FromString(one) for one in reply.resource_spans]

    async def export_logs(self, request: ExportLogsServiceRequest) -> ExportLogsServiceResponse:
        reply: ExportLogsServiceResponse = await self._export_logs(request, timeout=30)
        return reply

    async def logs(self, trace_id: bytes) -> list[ResourceLogs]:
        request = tracestore_pb2.GetTraceLogsRequest(trace_id=trace_id.hex())
        messages = [message async for message in self.get_trace_logs(request, timeout=30)]
        return [ResourceLogs.FromString(one) for message in messages for one in message.resource_logs]

    async def chunks(self, *trace_ids: bytes) -> list[TracesData]:
        """Jaeger's GetTraces."""
        query = [trace_storage_pb2.GetTraceParams(trace_id=trace_id) for trace_id in trace_ids]
        return [chunk async for chunk in self.jaeger.GetTraces(trace_storage_pb2.GetTracesRequest(query=query))]

    async def found(self, **query: Any) -> list[bytes]:
        """Jaeger's FindTraceIDs, which is to find what FindTraces finds."""
        request = find_request(**query)
        ids = [one.trace_id for one in (await self.jaeger.FindTraceIDs(request, timeout=60)).trace_ids]
        chunks = [chunk async for chunk in self.jaeger.FindTraces(request, timeout=60)]
        assert list(dict.fromkeys(trace_of(chunk) for chunk in chunks)) == ids
        return ids


def find_request(**query: Any) -> trace_storage_pb2.FindTracesRequest:
    """Times and durations in ns; `attributes` maps names to str, bool, int or float."""
    asked = trace_storage_pb2.TraceQueryParameters(
        service_name=query.get("service", ""), operation_name=query.get("name", ""), search_depth=query.get("depth", 0)
    )
    for field in ("start_time_min", "start_time_max"):
        if field in query:
            getattr(asked, field).FromNanoseconds(query[field])
    for field in ("duration_min", "duration_max"):
        if field in query:
            getattr(asked, field).FromNanoseconds(query[field])
    for key, value in query.get("attributes", {}).items():
        kinds = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}
        setattr(asked.attributes.add(key=key).value, kinds[type(value)], value)
    return trace_storage_pb2.FindTracesRequest(query=asked)


def trace_of(chunk: TracesData) -> bytes:
    """The only trace of a chunk."""
    (trace_id,) = {span.trace_id for span in spans_of(chunk)}
    return trace_id


def spans_of(chunk: TracesData) -> list[Span]:
    return [span for one in chunk.resource_spans for scope in one.scope_spans for span in scope.spans]


def span_of(trace_id: bytes, start_ns: int, name: str = "signer.sign", **fields: Any) -> Span:
    span = Span(
        trace_id=trace_id,
        span_id=secrets.token_bytes(8),
        name=name,
        start_time_unix_nano=start_ns,
        end_time_unix_nano=start_ns + fields.pop("duration_ns", 1_000_000),
        **fields,
    )
    attribute = span.attributes.add(key="wallet.signature.status")
    attribute.value.string_value = "success"
    return span


def request_of(*spans: Span, service: str) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add(schema_url="https://opentelemetry.io/schemas/1.30.0")
    resource_spans.resource.attributes.add(key="service.name").value.string_value = service
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = "goldenlink.rpc"
    scope_spans.spans.extend(spans)
    return request


def spans_in(resource_spans: list[ResourceSpans]) -> list[bytes]:
    return [one.scope_spans[0].spans[0].SerializeToString() for one in resource_spans]
