"""Jaeger's remote storage API, version 2, for reading.

Source: jaeger-idl v0.6.0, proto/storage/v2. Its rules: a chunk never holds spans of two traces, the chunks of a trace
follow each other, none is empty, and an unknown trace id is passed over. Spans go out as they came in, unread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from protos.jaeger.storage.v2 import dependency_storage_pb2, dependency_storage_pb2_grpc, trace_storage_pb2
from protos.wallet.v1.otlp_parts_pb2 import OtlpAttribute
from services.core.errors import refuse
from services.runtime.db import Database
from services.tracestore.attributes import value_text
from services.tracestore.chunks import trace_chunks
from services.tracestore.dependencies import dependencies
from services.tracestore.hot import HotStore
from services.tracestore.search import Search, TraceQuery
from services.tracestore.spans import MAX_BIGINT

TRACE_READER = "jaeger.storage.v2.TraceReader"
DEPENDENCY_READER = "jaeger.storage.v2.DependencyReader"
_DEFAULT_DEPTH, _MAX_DEPTH = 100, 10_000
# OTLP's SpanKind as Jaeger names it.
_KIND_NAMES = ("", "internal", "server", "client", "producer", "consumer")


class TraceReader:
    """`server.grpc.add_generic_rpc_handlers([TraceReader(…).handler()])`: generated code would parse every span."""

    def __init__(self, hot: HotStore, search: Search) -> None:
        self._hot = hot
        self._search = search

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        query = trace_storage_pb2.FindTracesRequest.FromString
        return grpc.method_handlers_generic_handler(
            TRACE_READER,
            {
                "GetTraces": grpc.unary_stream_rpc_method_handler(
                    self._get_traces, trace_storage_pb2.GetTracesRequest.FromString
                ),
                "FindTraces": grpc.unary_stream_rpc_method_handler(self._find_traces, query),
                "FindTraceIDs": grpc.unary_unary_rpc_method_handler(
                    self._find_trace_ids, query, trace_storage_pb2.FindTraceIDsResponse.SerializeToString
                ),
                "GetServices": grpc.unary_unary_rpc_method_handler(
                    self._get_services,
                    trace_storage_pb2.GetServicesRequest.FromString,
                    trace_storage_pb2.GetServicesResponse.SerializeToString,
                ),
                "GetOperations": grpc.unary_unary_rpc_method_handler(
                    self._get_operations,
                    trace_storage_pb2.GetOperationsRequest.FromString,
                    trace_storage_pb2.GetOperationsResponse.SerializeToString,
                ),
            },
        )

    async def _get_traces(
        self, request: trace_storage_pb2.GetTracesRequest, context: grpc.ServicerContext
    ) -> AsyncIterator[bytes]:
        # The times beside an id are hints, for stores that need them.
        async for chunk in self._chunks(dict.fromkeys(one.trace_id for one in request.query)):
            yield chunk

    async def _find_traces(
        self, request: trace_storage_pb2.FindTracesRequest, context: grpc.ServicerContext
    ) -> AsyncIterator[bytes]:
        async for chunk in self._chunks(await self._search.find(_query(request.query))):
            yield chunk

    async def _find_trace_ids(
        self, request: trace_storage_pb2.FindTracesRequest, context: grpc.ServicerContext
    ) -> trace_storage_pb2.FindTraceIDsResponse:
        found = await self._search.find(_query(request.query))
        return trace_storage_pb2.FindTraceIDsResponse(
            trace_ids=[trace_storage_pb2.FoundTraceID(trace_id=trace_id) for trace_id in found]
        )

    async def _get_services(
        self, request: trace_storage_pb2.GetServicesRequest, context: grpc.ServicerContext
    ) -> trace_storage_pb2.GetServicesResponse:
        return trace_storage_pb2.GetServicesResponse(services=await self._hot.services())

    async def _get_operations(
        self, request: trace_storage_pb2.GetOperationsRequest, context: grpc.ServicerContext
    ) -> trace_storage_pb2.GetOperationsResponse:
        operations = [
            trace_storage_pb2.Operation(name=name, span_kind=_KIND_NAMES[kind])
            for name, kind in await self._hot.operations(request.service)
            if request.span_kind in ("", _KIND_NAMES[kind])
        ]
        return trace_storage_pb2.GetOperationsResponse(operations=operations)

    async def _chunks(self, trace_ids: Iterable[bytes]) -> AsyncIterator[bytes]:
        for trace_id in trace_ids:
            async for page in self._hot.trace(trace_id):
                for chunk in trace_chunks(page):
                    yield chunk


class DependencyServicer(dependency_storage_pb2_grpc.DependencyReaderServicer):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def GetDependencies(
        self, request: dependency_storage_pb2.GetDependenciesRequest, context: grpc.ServicerContext
    ) -> dependency_storage_pb2.GetDependenciesResponse:
        start_ns, end_ns = _bounds(
            _time_ns(request, "start_time", 0), _time_ns(request, "end_time", MAX_BIGINT), "end_time"
        )
        return dependency_storage_pb2.GetDependenciesResponse(
            dependencies=[
                dependency_storage_pb2.Dependency(parent=one.parent, child=one.child, call_count=one.calls)
                for one in await dependencies(self._database, start_ns, end_ns)
            ]
        )


def _query(asked: trace_storage_pb2.TraceQueryParameters) -> TraceQuery:
    start_min_ns, start_max_ns = _bounds(
        _time_ns(asked, "start_time_min", 0), _time_ns(asked, "start_time_max", MAX_BIGINT), "start_time_max"
    )
    duration_min_ns, duration_max_ns = _bounds(
        _duration_ns(asked.duration_min), _duration_ns(asked.duration_max) or MAX_BIGINT, "duration_max"
    )
    # jaeger-idl: KeyValue is a copy of OTLP's.
    attributes = [OtlpAttribute.FromString(one.SerializeToString()) for one in asked.attributes]
    return TraceQuery(
        service=asked.service_name,
        name=asked.operation_name,
        attributes=tuple((one.key, value_text(one.value)) for one in attributes),
        start_min_ns=start_min_ns,
        start_max_ns=start_max_ns,
        duration_min_ns=duration_min_ns,
        duration_max_ns=duration_max_ns,
        depth=min(asked.search_depth, _MAX_DEPTH) if asked.search_depth > 0 else _DEFAULT_DEPTH,
    )


def _time_ns(
    holder: trace_storage_pb2.TraceQueryParameters | dependency_storage_pb2.GetDependenciesRequest,
    field: str,
    unset_ns: int,
) -> int:
    """A Go client sends a time that is not set as the year 1."""
    time: Timestamp = getattr(holder, field)
    time_ns = time.seconds * 10**9 + time.nanos
    return min(time_ns, MAX_BIGINT) if holder.HasField(field) and time_ns >= 0 else unset_ns  # type: ignore[arg-type]


def _duration_ns(duration: Duration) -> int:
    return min(max(duration.seconds * 10**9 + duration.nanos, 0), MAX_BIGINT)


def _bounds(least: int, most: int, field: str) -> tuple[int, int]:
    if least > most:
        refuse(field, "is not below the other bound")
    return least, most
