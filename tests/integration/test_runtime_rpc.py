"""PeerChannel and GrpcServer over real gRPC and mTLS on loopback."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from services.core.errors import Reason, WalletError
from services.runtime import channel as channel_module
from services.runtime import server as server_module
from services.runtime.channel import PeerChannel
from services.runtime.mtls import channel_credentials
from services.runtime.server import GrpcServer
from services.runtime.settings import ServiceSettings
from services.runtime.telemetry import format_traceparent
from tests.fakes.recorded_spans import spans_of_this_process
from tools.stack.authority import Authority

CALL = "/test.v1.Echo/Call"
WATCH = "/test.v1.Echo/Watch"
COUNT = "/test.v1.Echo/Count"
CHAT = "/test.v1.Echo/Chat"
Handler = Callable[[bytes, Any], Awaitable[bytes]]


@dataclass
class Suite:
    """A certificate authority, and the settings of services that it certified."""

    directory: Path
    authority: Authority

    def settings(self, service: str, listen: str = "127.0.0.1:0", **peers: int) -> ServiceSettings:
        return ServiceSettings(
            listen=listen,
            tls_dir=self.authority.issue(service),
            callers=self.directory / "callers.yaml",
            peers={peer: f"127.0.0.1:{port}" for peer, port in peers.items()},
        )


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    callers = {"signer": ["gateway"], "evidence": ["signer"]}
    (tmp_path / "callers.yaml").write_text(yaml.safe_dump(callers))
    return Suite(tmp_path, Authority(tmp_path / "tls"))


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return spans_of_this_process()


async def finished(spans: InMemorySpanExporter, kind: SpanKind, count: int = 1) -> list[ReadableSpan]:
    """The exported spans of this kind, once there are `count`: a server's span ends after the client has its answer."""
    for _ in range(500):
        found = [span for span in spans.get_finished_spans() if span.kind is kind]
        if len(found) >= count:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"{count} spans of {kind} were expected, {spans.get_finished_spans()} were exported")


def echo_server(suite: Suite, handler: Handler, service: str = "signer", **options: Any) -> GrpcServer:
    async def watch(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield await handler(request, context)

    async def count(requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"%d" % len([one async for one in requests])

    async def chat(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for one in requests:
            yield one

    server = GrpcServer(service, suite.settings(service, **options), ["test.v1.Echo"])
    server.grpc.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "test.v1.Echo",
                {
                    "Call": grpc.unary_unary_rpc_method_handler(handler),
                    "Watch": grpc.unary_stream_rpc_method_handler(watch),
                    "Count": grpc.stream_unary_rpc_method_handler(count),
                    "Chat": grpc.stream_stream_rpc_method_handler(chat),
                },
            ),
        )
    )
    return server


async def answer(request: bytes, context: Any) -> bytes:
    return b"echo:" + request


def raw_channel(suite: Suite, port: int, caller: str = "gateway") -> grpc.aio.Channel:
    """What somebody who does not use our client would open."""
    credentials = channel_credentials(suite.authority.issue(caller))
    return grpc.aio.secure_channel(
        f"127.0.0.1:{port}", credentials, options=[("grpc.ssl_target_name_override", "signer")]
    )


async def drained(stream: AsyncIterator[bytes]) -> list[bytes]:
    return [message async for message in stream]


async def refusal_of(call: Awaitable[Any]) -> WalletError:
    with pytest.raises(WalletError) as raised:
        await call
    return raised.value


async def test_reason_message_and_details_cross_two_hops(suite: Suite) -> None:
    async def deep(request: bytes, context: Any) -> bytes:
        raise WalletError(Reason.CLOCK_SKEW, "sent_at ist zu spät", field="sent_at", index=3)

    async with echo_server(suite, deep, "evidence") as evidence:
        evidence_peer = PeerChannel("evidence", suite.settings("signer", evidence=evidence.port))

        async def forward(request: bytes, context: Any) -> bytes:
            reply: bytes = await evidence_peer.unary_unary(CALL)(request)
            return reply

        async with echo_server(suite, forward) as signer:
            peer = PeerChannel("signer", suite.settings("gateway", signer=signer.port))
            error = await refusal_of(peer.unary_unary(CALL)(b""))
            await peer.close()
        await evidence_peer.close()
    assert (error.reason, error.message) == (Reason.CLOCK_SKEW, "sent_at ist zu spät")
    assert error.details == {"field": "sent_at", "index": "3"}


async def test_details_of_many_kilobytes_cross(suite: Suite) -> None:
    async def verbose(request: bytes, context: Any) -> bytes:
        raise WalletError(Reason.POLICY_DENIED, "m" * 4_000, rules="r" * 20_000)

    async with echo_server(suite, verbose) as server:
        peer = PeerChannel("signer", suite.settings("gateway", signer=server.port))
        error = await refusal_of(peer.unary_unary(CALL)(b""))
        await peer.close()
    assert error.reason is Reason.POLICY_DENIED
    assert error.details == {"rules": "r" * 20_000}


async def test_unhandled_exception_is_internal_with_its_text_in_the_log_only(
    suite: Suite, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(request: bytes, context: Any) -> bytes:
        raise KeyError("the PIN is 1234")

    async with echo_server(suite, broken) as server:
        async with raw_channel(suite, server.port) as channel:
            with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary(CALL)(b"")
        (span,) = await finished(spans, SpanKind.SERVER)
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert "1234" not in repr(raised.value) + repr(raised.value.trailing_metadata())
    assert "1234" in caplog.text
    # The stock instrumentation leaves code 0 here, and records the text as an event.
    assert span.attributes is not None
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INTERNAL.value[0]
    assert span.status.status_code is StatusCode.ERROR
    assert "1234" not in span.to_json()


@pytest.mark.parametrize("method", [CALL, WATCH, COUNT, CHAT])
async def test_caller_off_the_list_is_refused(suite: Suite, method: str) -> None:
    async def one() -> AsyncIterator[bytes]:
        yield b"x"

    async with echo_server(suite, answer) as server, raw_channel(suite, server.port, "broadcaster") as channel:
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            CALL: lambda: channel.unary_unary(CALL)(b""),
            WATCH: lambda: drained(channel.unary_stream(WATCH)(b"")),
            COUNT: lambda: channel.stream_unary(COUNT)(one()),
            CHAT: lambda: drained(channel.stream_stream(CHAT)(one())),
        }
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await calls[method]()
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
    metadata = dict(raised.value.trailing_metadata() or ())
    assert b"CALLER_NOT_ALLOWED" in metadata["grpc-status-details-bin"]


async def test_listed_caller_streams(suite: Suite) -> None:
    async def two() -> AsyncIterator[bytes]:
        yield b"x"
        yield b"y"

    async with echo_server(suite, answer) as server, raw_channel(suite, server.port) as channel:
        assert await channel.stream_unary(COUNT)(two()) == b"2"
        assert [message async for message in channel.stream_stream(CHAT)(two())] == [b"x", b"y"]
        peer = PeerChannel("signer", suite.settings("gateway", signer=server.port))
        assert [message async for message in peer.unary_stream(WATCH)(b"z")] == [b"echo:z"] * 3
        await peer.close()


async def test_error_in_a_stream_keeps_its_reason(suite: Suite) -> None:
    async def gone(request: bytes, context: Any) -> bytes:
        raise WalletError(Reason.NOT_FOUND, "no such cursor", field="cursor")

    async with echo_server(suite, gone) as server:
        peer = PeerChannel("signer", suite.settings("gateway", signer=server.port))
        with pytest.raises(WalletError) as raised:
            _ = [message async for message in peer.unary_stream(WATCH)(b"")]
        await peer.close()
    assert (raised.value.reason, raised.value.details) == (Reason.NOT_FOUND, {"field": "cursor"})


async def test_certificate_of_another_authority_cannot_connect(suite: Suite, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger").issue("gateway")
    # It trusts our authority, so that only the server's check can refuse it.
    (stranger / "ca.pem").write_bytes((suite.authority.issue("signer") / "ca.pem").read_bytes())
    async with echo_server(suite, answer) as server:
        settings = suite.settings("gateway", signer=server.port).model_copy(update={"tls_dir": stranger})
        peer = PeerChannel("signer", settings)
        error = await refusal_of(peer.unary_unary(CALL)(b"", timeout=5))
        await peer.close()
    assert error.reason is Reason.SERVICE_UNAVAILABLE


async def test_no_certificate_cannot_connect(suite: Suite) -> None:
    trusted = (suite.authority.issue("gateway") / "ca.pem").read_bytes()
    async with (
        echo_server(suite, answer) as server,
        grpc.aio.secure_channel(
            f"127.0.0.1:{server.port}",
            grpc.ssl_channel_credentials(trusted),
            options=[("grpc.ssl_target_name_override", "signer")],
        ) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(CALL)(b"", timeout=5)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_server_with_another_services_certificate_is_refused(suite: Suite) -> None:
    async with echo_server(suite, answer, "evidence") as impostor:
        peer = PeerChannel("signer", suite.settings("gateway", signer=impostor.port))
        error = await refusal_of(peer.unary_unary(CALL)(b"", timeout=5))
        await peer.close()
    assert (error.reason, error.details) == (Reason.SERVICE_UNAVAILABLE, {"service": "signer"})


async def test_deadline(suite: Suite, spans: InMemorySpanExporter) -> None:
    async def slow(request: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with echo_server(suite, slow) as server:
        peer = PeerChannel("signer", suite.settings("gateway", signer=server.port))
        started = time.monotonic()
        error = await refusal_of(peer.unary_unary(CALL)(b"", timeout=0.2))
        assert 0.15 < time.monotonic() - started < 2
        assert error.reason is Reason.DEADLINE_EXCEEDED
        (client,) = await finished(spans, SpanKind.CLIENT)
        (served,) = await finished(spans, SpanKind.SERVER)
        await peer.close()
    assert client.attributes is not None
    assert client.attributes["rpc.grpc.status_code"] == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert client.attributes["error.type"] == "DEADLINE_EXCEEDED"
    # To the server an expired deadline is a caller that gave up.
    assert served.status.status_code is StatusCode.ERROR
    assert served.attributes is not None
    assert served.attributes["error.type"] == "CANCELLED"


async def test_cancelled_call_ends_both_spans_as_cancelled(suite: Suite, spans: InMemorySpanExporter) -> None:
    running = asyncio.Event()

    async def slow(request: bytes, context: Any) -> bytes:
        running.set()
        await asyncio.Event().wait()
        return b""

    async with echo_server(suite, slow) as server:
        peer = PeerChannel("signer", suite.settings("gateway", signer=server.port))
        call = asyncio.ensure_future(peer.unary_unary(CALL)(b""))
        await running.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        (client,) = await finished(spans, SpanKind.CLIENT)
        (served,) = await finished(spans, SpanKind.SERVER)
        await peer.close()
    for span in (client, served):
        assert span.attributes is not None
        assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
        assert span.attributes["error.type"] == "CANCELLED"
        assert span.status.status_code is StatusCode.ERROR


async def test_refusal_records_no_exception_event(suite: Suite, spans: InMemorySpanExporter) -> None:
    async def denied(request: bytes, context: Any) -> bytes:
        raise WalletError(Reason.POLICY_DENIED, "value above limit", to="0xSECRET")

    async with echo_server(suite, denied) as server:
        peer = PeerChannel("signer", suite.settings("gateway", signer=server.port))
        await refusal_of(peer.unary_unary(CALL)(b""))
        (client,) = await finished(spans, SpanKind.CLIENT)
        (served,) = await finished(spans, SpanKind.SERVER)
        await peer.close()
    for span in (client, served):
        assert span.events == ()
        assert span.status.description == "POLICY_DENIED"
        assert "SECRET" not in span.to_json()
        assert "above limit" not in span.to_json()


async def test_a_request_that_cannot_be_sent_ends_its_span(suite: Suite, spans: InMemorySpanExporter) -> None:
    peer = PeerChannel("signer", suite.settings("gateway", signer=1))
    await peer.close()
    with pytest.raises(Exception):  # noqa: B017, PT011  # gRPC's own usage error, whichever it is
        await peer.unary_unary(CALL)(b"")
    (client,) = await finished(spans, SpanKind.CLIENT)
    assert client.status.status_code is StatusCode.ERROR


async def test_traceparent_crosses_into_the_handler_and_its_threads(suite: Suite, spans: InMemorySpanExporter) -> None:
    async def current(request: bytes, context: Any) -> bytes:
        return (
            await asyncio.to_thread(lambda: format_traceparent(trace.get_current_span().get_span_context()))
        ).encode()

    async with echo_server(suite, current) as server:
        peer = PeerChannel("signer", suite.settings("gateway", signer=server.port))
        with trace.get_tracer("test").start_as_current_span("root") as root:
            reply = await peer.unary_unary(CALL)(b"")
        (client,) = await finished(spans, SpanKind.CLIENT)
        (served,) = await finished(spans, SpanKind.SERVER)
        await peer.close()
    assert client.parent == root.get_span_context()
    assert served.parent is not None
    assert client.context is not None
    assert served.context is not None
    assert served.parent.span_id == client.context.span_id
    assert reply.decode() == format_traceparent(served.context)
    assert served.context.trace_id == root.get_span_context().trace_id
    assert (client.name, served.name) == ("test.v1.Echo/Call",) * 2


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "ff-" + "1" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "A" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-01-more",
        "' OR 1=1 --",
        "x" * 6000,
    ],
)
async def test_hostile_traceparent_starts_a_new_trace(suite: Suite, spans: InMemorySpanExporter, hostile: str) -> None:
    async with echo_server(suite, answer) as server, raw_channel(suite, server.port) as channel:
        metadata = (("traceparent", hostile),)
        assert await channel.unary_unary(CALL)(b"x", metadata=metadata) == b"echo:x"
        (served,) = await finished(spans, SpanKind.SERVER)
    assert served.parent is None
    assert served.context is not None
    assert served.context.trace_id != int("1" * 32, 16)


async def test_server_restart_is_survived_within_two_seconds(suite: Suite) -> None:
    async with echo_server(suite, answer) as server:
        port = server.port
        peer = PeerChannel("signer", suite.settings("gateway", signer=port))
        assert await peer.unary_unary(CALL)(b"1") == b"echo:1"
    # Long enough down for the client to fail and to back off a few times.
    for _ in range(10):
        assert (await refusal_of(peer.unary_unary(CALL)(b"", timeout=0.2))).reason in (
            Reason.SERVICE_UNAVAILABLE,
            Reason.DEADLINE_EXCEEDED,
        )
        await asyncio.sleep(0.1)
    async with echo_server(suite, answer, listen=f"127.0.0.1:{port}"):
        started = time.monotonic()
        reply = None
        while reply is None and time.monotonic() - started < 5:
            try:
                reply = await peer.unary_unary(CALL)(b"2")
            except WalletError:
                await asyncio.sleep(0.02)
        assert reply == b"echo:2"
        assert time.monotonic() - started < 2
        await peer.close()


async def test_graceful_stop_drains_the_running_call(suite: Suite) -> None:
    running, release = asyncio.Event(), asyncio.Event()

    async def slow(request: bytes, context: Any) -> bytes:
        running.set()
        await release.wait()
        return b"done"

    server = echo_server(suite, slow)
    await server.__aenter__()
    peer = PeerChannel("signer", suite.settings("gateway", signer=server.port))
    call = asyncio.ensure_future(peer.unary_unary(CALL)(b""))
    await running.wait()
    stop = asyncio.ensure_future(server.__aexit__(None, None, None))
    for _ in range(200):
        late = PeerChannel("signer", suite.settings("gateway", signer=server.port))
        try:
            await late.unary_unary(CALL)(b"", timeout=0.05)
        except WalletError as error:
            if error.reason is Reason.SERVICE_UNAVAILABLE:
                break
        finally:
            await late.close()
    else:
        raise AssertionError("a stopping server still takes new connections")
    release.set()
    assert await call == b"done"
    await asyncio.wait_for(stop, 3)
    await peer.close()


async def test_health_is_open_to_every_certificate_of_the_suite(suite: Suite) -> None:
    async with echo_server(suite, answer) as server:
        peer = PeerChannel("signer", suite.settings("broadcaster", signer=server.port))
        stub = health_pb2_grpc.HealthStub(peer)
        for name in ("", "test.v1.Echo"):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        server.report("", serving=False)
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=""))
        assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
        await peer.close()


async def test_reflection_answers_listed_callers_only(suite: Suite) -> None:
    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async with echo_server(suite, answer) as server:
        async with raw_channel(suite, server.port) as channel:
            replies = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask())
            names = [one.name async for reply in replies for one in reply.list_services_response.service]
            assert "test.v1.Echo" in names
        async with raw_channel(suite, server.port, "broadcaster") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                _ = [one async for one in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask())]
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_machinery_is_not_traced(suite: Suite, spans: InMemorySpanExporter) -> None:
    async with echo_server(suite, answer) as server:
        peer = PeerChannel("signer", suite.settings("gateway", signer=server.port))
        await health_pb2_grpc.HealthStub(peer).Check(health_pb2.HealthCheckRequest())
        await peer.unary_unary(CALL)(b"")
        await finished(spans, SpanKind.SERVER)
        await peer.close()
    assert {span.name for span in spans.get_finished_spans()} == {"test.v1.Echo/Call"}


def test_keepalive_pings_are_no_more_frequent_than_servers_allow() -> None:
    # gRPC closes a connection that pings more often, with GOAWAY too_many_pings.
    client, served = dict(channel_module._OPTIONS), dict(server_module._OPTIONS)
    assert client["grpc.keepalive_permit_without_calls"] == 1
    assert int(client["grpc.keepalive_time_ms"]) >= int(served["grpc.http2.min_ping_interval_without_data_ms"])
    assert client["grpc.http2.max_pings_without_data"] == 0
