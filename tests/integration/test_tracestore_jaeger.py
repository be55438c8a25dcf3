"""Jaeger's remote storage API as its processes use it: over mTLS, by their own certificates, with stock limits."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from protos.jaeger.storage.v2 import dependency_storage_pb2, trace_storage_pb2, trace_storage_pb2_grpc
from protos.wallet.v1 import tracestore_pb2
from services.core.errors import Reason, WalletError
from tests.integration.dependencies import OwnPostgres
from tests.integration.tracestore_harness import (
    EXPORT,
    Client,
    Store,
    a_store,
    find_request,
    request_of,
    span_of,
    spans_of,
    trace_of,
)

SERVER, CLIENT = Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT
MS = 10**6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, own_postgres: Callable[[], OwnPostgres]) -> Iterator[Store]:
    with own_postgres() as postgres, a_store(tmp_path_factory.mktemp("jaeger"), postgres) as made:
        yield made


@pytest.fixture
async def running(store: Store) -> AsyncIterator[Store]:
    async with store.running():
        yield store


async def test_traces_come_in_chunks_that_never_mix_and_unknown_ids_are_passed_over(running: Store) -> None:
    first, second, unknown = (secrets.token_bytes(16) for _ in range(3))
    async with Client(running, "jaeger-collector") as collector, Client(running, "jaeger-query") as query:
        spans = [span_of(first, 3), span_of(second, 1), span_of(first, 1), span_of(first, 2)]
        await collector.export(*spans[:3], service="signer")
        await collector.export(spans[3], service="gateway")
        chunks = await query.chunks(second, unknown, first, first)
        assert await query.chunks(unknown) == await query.chunks() == await query.chunks(b"short") == []
    assert [trace_of(chunk) for chunk in chunks] == [second, first]
    services = [
        (resource.resource.attributes[0].value.string_value, [span.start_time_unix_nano for span in scope.spans])
        for resource in chunks[1].resource_spans
        for scope in resource.scope_spans
    ]
    assert services == [("signer", [1, 3]), ("gateway", [2])]


async def test_a_trace_of_many_megabytes_is_read_by_a_client_that_takes_four(running: Store) -> None:
    trace_id = secrets.token_bytes(16)
    spans = [span_of(trace_id, number + 1) for number in range(3_000)]
    for number, span in enumerate(spans):
        # Two just below what is taken, the others of some kilobytes.
        span.attributes.add(key="large").value.bytes_value = bytes(4_192_000 if number in (7, 8) else 5_000)
    sent = 0
    async with running.stock_channel("jaeger-collector") as collector:
        for start in range(0, len(spans), 500):
            request = request_of(*spans[start : start + 500], service="signer").SerializeToString()
            assert await collector.unary_unary(EXPORT)(request) == b""
            sent += len(request)
    async with running.stock_channel("jaeger-query") as query:
        reader = trace_storage_pb2_grpc.TraceReaderStub(query)
        asked = trace_storage_pb2.GetTracesRequest(query=[trace_storage_pb2.GetTraceParams(trace_id=trace_id)])
        chunks = [chunk async for chunk in reader.GetTraces(asked)]
    assert sent > 20_000_000
    assert [span for chunk in chunks for span in spans_of(chunk)] == spans


async def test_search_by_service_operation_attributes_duration_and_time(running: Store) -> None:
    now = time.time_ns()
    ids = [secrets.token_bytes(16) for _ in range(4)]
    spans = [
        span_of(trace_id, now + number, name="sign" if number % 2 else "send", duration_ns=(number + 1) * MS)
        for number, trace_id in enumerate(ids)
    ]
    spans[0].attributes.add(key="rpc.grpc.status_code").value.int_value = 14
    spans[1].attributes.add(key="is.cached").value.bool_value = True
    spans[2].events.add(name="exception").attributes.add(key="exception.type").value.string_value = "OSError"
    spans[2].status.code = Span().status.STATUS_CODE_ERROR
    spans[3].attributes.add(key="took").value.double_value = 1.5
    service = f"service-{secrets.token_hex(4)}"
    async with Client(running, "jaeger-collector") as collector, Client(running, "jaeger-query") as query:
        await collector.export(*spans, service=service)
        for asked, expected in (
            ({}, [3, 2, 1, 0]),
            ({"depth": 2}, [3, 2]),
            ({"name": "sign"}, [3, 1]),
            ({"attributes": {"rpc.grpc.status_code": 14}}, [0]),
            ({"attributes": {"rpc.grpc.status_code": "14"}}, [0]),
            ({"attributes": {"is.cached": True}}, [1]),
            ({"attributes": {"is.cached": "false"}}, []),
            ({"attributes": {"exception.type": "OSError"}}, [2]),
            ({"attributes": {"error": "true"}}, [2]),
            ({"attributes": {"error": False}}, [3, 1, 0]),
            ({"attributes": {"took": 1.5}}, [3]),
            ({"attributes": {"service.name": service}}, [3, 2, 1, 0]),
            ({"attributes": {"wallet.signature.status": "success", "took": "1.5"}}, [3]),
            # One span is to have it all.
            ({"attributes": {"is.cached": True, "took": 1.5}}, []),
            ({"name": "sign", "attributes": {"is.cached": True}}, [1]),
            ({"name": "send", "attributes": {"is.cached": True}}, []),
            ({"duration_min": 3 * MS}, [3, 2]),
            ({"duration_min": 2 * MS, "duration_max": 3 * MS}, [2, 1]),
            ({"start_time_min": now + 1, "start_time_max": now + 2}, [2, 1]),
            # How a Go client sends a time that is not set.
            ({"start_time_min": -62_135_596_800 * 10**9, "start_time_max": -62_135_596_800 * 10**9}, [3, 2, 1, 0]),
        ):
            assert await query.found(service=service, **asked) == [ids[number] for number in expected], asked
        assert await query.found(service="nobody") == []
        for wrong in ({"start_time_min": 2, "start_time_max": 1}, {"duration_min": 2, "duration_max": 1}):
            with pytest.raises(WalletError) as raised:
                await query.jaeger.FindTraceIDs(find_request(**wrong))
            assert raised.value.reason is Reason.INVALID_REQUEST


async def test_services_and_operations_are_listed(running: Store) -> None:
    service = f"service-{secrets.token_hex(4)}"
    trace_id = secrets.token_bytes(16)
    spans = [span_of(trace_id, 1, "b", kind=SERVER), span_of(trace_id, 2, "a", kind=CLIENT), span_of(trace_id, 3, "a")]
    async with Client(running, "jaeger-collector") as collector, Client(running, "jaeger-query") as query:
        await collector.export(*spans, service=service)
        await collector.export(*spans, service="")
        services = list((await query.jaeger.GetServices(trace_storage_pb2.GetServicesRequest())).services)
        listed = {
            kind: [
                (one.name, one.span_kind)
                for one in (
                    await query.jaeger.GetOperations(
                        trace_storage_pb2.GetOperationsRequest(service=service, span_kind=kind)
                    )
                ).operations
            ]
            for kind in ("", "server", "internal")
        }
    assert service in services
    assert "" not in services
    assert services == sorted(set(services))
    assert listed == {"": [("a", ""), ("a", "client"), ("b", "server")], "server": [("b", "server")], "internal": []}


async def test_a_flood_of_span_names_is_stored_and_listed_up_to_a_limit(running: Store) -> None:
    service = f"service-{secrets.token_hex(4)}"
    trace_id = secrets.token_bytes(16)
    async with Client(running, "jaeger-collector") as collector, Client(running, "jaeger-query") as query:
        await collector.export(*(span_of(trace_id, n + 1, f"/path/{n}") for n in range(3_000)), service=service)
        asked = trace_storage_pb2.GetOperationsRequest(service=service)
        assert len((await query.jaeger.GetOperations(asked)).operations) == 1_000
        for name in ("/path/0", "/path/2999"):
            assert await query.found(service=service, name=name) == [trace_id]


async def test_dependencies_are_the_calls_between_services(running: Store) -> None:
    now, trace_id = time.time_ns(), secrets.token_bytes(16)
    caller, callee = (f"service-{secrets.token_hex(4)}" for _ in range(2))
    root = span_of(trace_id, now)
    inside = span_of(trace_id, now + 1, parent_span_id=root.span_id)
    calls = [span_of(trace_id, now + 2 + n, parent_span_id=inside.span_id, kind=SERVER) for n in range(3)]
    orphan = span_of(trace_id, now + 9, parent_span_id=b"missing!")
    async with Client(running, "jaeger-collector") as collector, Client(running, "jaeger-query") as query:
        # The children first, and one of them in two versions.
        ended = Span.FromString(calls[0].SerializeToString())
        ended.end_time_unix_nano += 1
        await collector.export(*calls, orphan, ended, service=callee)
        await collector.export(root, inside, service=caller)
        request = dependency_storage_pb2.GetDependenciesRequest()
        request.start_time.FromNanoseconds(now)
        request.end_time.FromNanoseconds(now + 10)
        found = (await query.dependencies.GetDependencies(request)).dependencies
        request.start_time.FromNanoseconds(now + 4)
        later = (await query.dependencies.GetDependencies(request)).dependencies
    assert [(one.parent, one.child, one.call_count) for one in found] == [(caller, callee, 3)]
    assert [(one.parent, one.child, one.call_count) for one in later] == [(caller, callee, 1)]


async def test_jaegers_processes_may_do_their_own_part_only(running: Store) -> None:
    asked = tracestore_pb2.GetTraceRequest(trace_id=secrets.token_hex(16))
    services = trace_storage_pb2.GetServicesRequest()
    async with Client(running, "jaeger-collector") as collector, Client(running, "jaeger-query") as query:
        for refused in (
            collector.get_trace(asked),
            collector.jaeger.GetServices(services),
            query.get_trace(asked),
            query.export(span_of(secrets.token_bytes(16), 1)),
        ):
            with pytest.raises(WalletError) as raised:
                await refused
            assert raised.value.reason is Reason.CALLER_NOT_ALLOWED
        with pytest.raises(WalletError) as raised:
            await collector.chunks(secrets.token_bytes(16))
        assert raised.value.reason is Reason.CALLER_NOT_ALLOWED
    # Without TLS nobody is anybody.
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as plain:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await plain.unary_unary(EXPORT)(b"", timeout=5)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
