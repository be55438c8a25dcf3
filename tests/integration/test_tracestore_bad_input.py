"""What nobody should send, and somebody does. Everything is either stored to the byte or refused by name."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator

import grpc
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from protos.jaeger.storage.v2 import trace_storage_pb2
from protos.wallet.v1 import tracestore_pb2
from protos.wallet.v1.otlp_parts_pb2 import OtlpExport, OtlpResource, OtlpScope, OtlpSpan
from services.core.errors import Reason, WalletError
from services.gateway.otlp import trace_document
from services.runtime.channel import MAX_MESSAGE_BYTES
from services.runtime.rpc_errors import from_rpc_error
from services.tracestore.otlp import MAX_RECORD_BYTES
from tests.integration.dependencies import OwnPostgres
from tests.integration.tracestore_harness import EXPORT, Client, Store, a_store, request_of, span_of, spans_in


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, own_postgres: Callable[[], OwnPostgres]) -> Iterator[Store]:
    with own_postgres() as postgres, a_store(tmp_path_factory.mktemp("bad-input"), postgres) as made:
        yield made


@pytest.fixture
async def client(store: Store) -> AsyncIterator[Client]:
    async with store.running(), Client(store) as client:
        yield client


@pytest.fixture
async def channel(store: Store, client: Client) -> AsyncIterator[grpc.aio.Channel]:
    async with store.stock_channel("gateway") as channel:
        yield channel


async def export(channel: grpc.aio.Channel, request: bytes) -> ExportTraceServiceResponse:
    return ExportTraceServiceResponse.FromString(await channel.unary_unary(EXPORT)(request, timeout=60))


async def test_malformed_otlp_is_refused_by_name(client: Client, channel: grpc.aio.Channel) -> None:
    trace_id = secrets.token_bytes(16)
    good = request_of(span_of(trace_id, 1), service="signer").SerializeToString()
    for malformed in (b"\xff" * 9, good + b"\x0a", b"not protobuf", good[:-1]):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await export(channel, malformed)
        refusal = from_rpc_error(failed.value, "tracestore")
        assert (refusal.reason, refusal.details["field"]) == (Reason.INVALID_REQUEST, "request")
        # Exporters do not try it again (OTLP specification, "Failures").
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(WalletError) as unknown:
        await client.trace(trace_id)
    assert unknown.value.reason is Reason.NOT_FOUND


async def test_a_span_of_four_mebibytes_is_refused_by_its_limit_and_one_below_is_kept(
    client: Client, channel: grpc.aio.Channel
) -> None:
    trace_id = secrets.token_bytes(16)
    large, largest, small = (span_of(trace_id, number + 1) for number in range(3))
    large.attributes.add(key="x").value.bytes_value = bytes(4 * 1024 * 1024)
    # Its resource and scope count, and so do the tags and lengths of the attribute.
    room = MAX_RECORD_BYTES - request_of(service="signer").ByteSize() - largest.ByteSize()
    largest.attributes.add(key="x").value.bytes_value = bytes(room - 20)
    reply = await export(channel, request_of(large, largest, small, service="signer").SerializeToString())
    assert reply.partial_success.rejected_spans == 1
    assert f"at most {MAX_RECORD_BYTES} bytes" in reply.partial_success.error_message
    assert spans_in(await client.trace(trace_id)) == [largest.SerializeToString(), small.SerializeToString()]


async def test_a_request_above_the_servers_limit_is_refused_with_it(client: Client, channel: grpc.aio.Channel) -> None:
    trace_id = secrets.token_bytes(16)
    spans = [span_of(trace_id, number + 1) for number in range(9)]
    for span in spans:
        span.attributes.add(key="x").value.bytes_value = bytes(4_000_000)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await export(channel, request_of(*spans, service="signer").SerializeToString())
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_MESSAGE_BYTES) in str(failed.value.details())
    # A request of 28 MB is below it; the trace is more than one reply of ours holds with the rest, and Jaeger reads it.
    assert not (await export(channel, request_of(*spans[:7], service="signer").SerializeToString())).HasField(
        "partial_success"
    )
    assert len(await client.trace(trace_id)) == 7
    await export(channel, request_of(*spans[7:], service="signer").SerializeToString())
    with pytest.raises(WalletError) as refused:
        await client.trace(trace_id)
    assert (refused.value.reason, refused.value.details["field"]) == (Reason.PAYLOAD_TOO_LARGE, "trace_id")
    async with Client(client.store, "jaeger-query") as query:
        assert len(await query.chunks(trace_id)) == 9


async def test_spans_of_1970_and_of_the_future_are_kept_and_found(client: Client) -> None:
    ids = [secrets.token_bytes(16) for _ in range(3)]
    starts = (0, time.time_ns() + 365 * 86_400 * 10**9, 2**63 - 1)
    service = f"service-{secrets.token_hex(4)}"
    spans = [span_of(trace_id, start) for trace_id, start in zip(ids, starts, strict=True)]
    assert not (await client.export(*spans, service=service)).HasField("partial_success")
    for trace_id, span in zip(ids, spans, strict=True):
        assert spans_in(await client.trace(trace_id)) == [span.SerializeToString()]
    async with Client(client.store, "jaeger-query") as query:
        assert await query.found(service=service) == ids[::-1]
        assert await query.found(service=service, start_time_max=1) == ids[:1]


async def test_texts_that_are_no_utf_8_are_kept_to_the_byte_and_can_be_read(
    client: Client, channel: grpc.aio.Channel
) -> None:
    trace_id = secrets.token_bytes(16)
    span = span_of(trace_id, 5)
    span.ClearField("attributes")
    # Attribute {key = ff fe, value = {string_value = ed a0 80, a surrogate}}.
    content = span.SerializeToString() + b"\x2a\x03\xff\xfe!" + b"\x4a\x0b\x0a\x02\xff\xfe\x12\x05\x0a\x03\xed\xa0\x80"
    head = b"\x0a\x15\x0a\x13\x0a\x0cservice.name\x12\x03\x0a\x01\xe9"
    scope = OtlpScope(records=[content]).SerializeToString()
    request = OtlpExport(resources=[head + OtlpResource(scopes=[scope]).SerializeToString()]).SerializeToString()
    assert not (await export(channel, request)).HasField("partial_success")
    asked = tracestore_pb2.GetTraceRequest(trace_id=trace_id.hex())
    (stored,) = (await client.get_trace(asked)).resource_spans
    assert OtlpScope.FromString(OtlpResource.FromString(stored).scopes[0]).records == [content]
    assert OtlpSpan.FromString(content).name == b"\xff\xfe!"
    # The gateway shows what can be shown of it.
    (shown,) = trace_document([stored])["resourceSpans"]
    assert shown["resource"]["attributes"][0]["value"]["stringValue"] == "\N{REPLACEMENT CHARACTER}"
    assert shown["scopeSpans"][0]["spans"][0]["name"] == "\N{REPLACEMENT CHARACTER}" * 2 + "!"
    assert shown["scopeSpans"][0]["spans"][0]["traceId"] == trace_id.hex()
    # Jaeger's process gets it as it came.
    async with client.store.stock_channel("jaeger-query") as query:
        ids = trace_storage_pb2.GetTracesRequest(query=[trace_storage_pb2.GetTraceParams(trace_id=trace_id)])
        stream = query.unary_stream("/jaeger.storage.v2.TraceReader/GetTraces")(ids.SerializeToString())
        assert [content in chunk async for chunk in stream] == [True]


async def test_a_million_attribute_keys_are_stored_and_harm_nobody(client: Client) -> None:
    service = f"service-{secrets.token_hex(4)}"
    # Other tests' stacks have one too.
    (process,) = [
        one for one in psutil.Process().children() if one.environ().get("WALLET_LISTEN") == client.store.address
    ]
    trace_id, crowded = secrets.token_bytes(16), secrets.token_bytes(16)
    for batch in range(20):
        spans = []
        for number in range(500):
            span = span_of(trace_id, batch * 500 + number + 1)
            for key in range(100):
                span.attributes.add(key=f"key.{batch}.{number}.{key}").value.int_value = key
            spans.append(span)
        assert not (await client.export(*spans, service=service)).HasField("partial_success")
    # Twice as many as the index takes of one span, and far more.
    for count in (256, 100_000):
        span = span_of(crowded, count)
        for key in range(count):
            span.attributes.add(key=f"key.{key}").value.int_value = key
        await client.export(span, service=service)
    assert process.memory_info().rss < 400 * 1024 * 1024
    assert len(await client.trace(crowded)) == 2
    async with Client(client.store, "jaeger-query") as query:
        for attributes, found in (
            ({"key.19.499.99": 99}, [trace_id]),
            ({"key.19.499.99": 98}, []),
            ({"key.255": 255}, [crowded]),
            ({"key.99999": 99_999}, [crowded]),
            ({"key.100000": 100_000}, []),
        ):
            assert await query.found(service=service, attributes=attributes) == found, attributes


async def test_the_same_batch_twice_is_stored_once(client: Client, channel: grpc.aio.Channel) -> None:
    trace_id = secrets.token_bytes(16)
    spans = [span_of(trace_id, number + 1) for number in range(100)]
    request = request_of(*spans, service="signer").SerializeToString()
    for _ in range(2):
        assert not (await export(channel, request)).HasField("partial_success")
    assert spans_in(await client.trace(trace_id)) == [span.SerializeToString() for span in spans]
    count = client.store.postgres.execute(
        f"SELECT count(*) FROM tracestore.spans WHERE trace_id = '\\x{trace_id.hex()}'"
    )
    assert count == "100"
