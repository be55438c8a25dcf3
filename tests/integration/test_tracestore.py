"""tracestore as a process, over OTLP and mTLS, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from protos.wallet.v1 import tracestore_pb2, tracestore_pb2_grpc
from services.core.errors import Reason, WalletError
from services.runtime.channel import PeerChannel
from services.runtime.settings import ServiceSettings
from tests.integration.dependencies import OwnPostgres
from tools.stack.authority import Authority

# A process that makes one span the way every service does, and ends.
_ONE_SPAN = """
from opentelemetry import trace
from services.runtime.logs import start_logging
from services.runtime.settings import ServiceSettings
from services.runtime.telemetry import format_traceparent, start_telemetry, stop_telemetry
start_logging("signer", "INFO")
start_telemetry("signer", ServiceSettings())
with trace.get_tracer("test").start_as_current_span("signer.token"):
    print(format_traceparent(trace.get_current_span().get_span_context()))
stop_telemetry()
"""


@dataclass
class Store:
    """What is needed to run tracestore and to call it."""

    postgres: OwnPostgres
    authority: Authority
    database: dict[str, str]
    port: int
    log: Path

    def settings(self, caller: str) -> ServiceSettings:
        return ServiceSettings(tls_dir=self.authority.issue(caller), peers={"tracestore": f"127.0.0.1:{self.port}"})

    def environment(self, service: str) -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "WALLET_TLS_DIR": str(self.authority.issue(service)),
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://127.0.0.1:{self.port}",
        }

    def _start(self, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "services.tracestore"]
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[subprocess.Popen[bytes]]:
        environment = {
            **self.environment("tracestore"),
            **self.database,
            "WALLET_LISTEN": f"127.0.0.1:{self.port}",
        }
        process = self._start(environment)
        try:
            channel = PeerChannel("tracestore", self.settings("gateway"))
            for _ in range(200):
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


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, own_postgres: Callable[[], OwnPostgres]) -> Iterator[Store]:
    directory = tmp_path_factory.mktemp("tracestore")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with own_postgres() as postgres:
        database = postgres.migrated("tracestore").environment
        yield Store(postgres, Authority(directory / "tls"), database, port, directory / "log")


class Client:
    """One caller of the store."""

    def __init__(self, store: Store, caller: str = "gateway") -> None:
        self.channel = PeerChannel("tracestore", store.settings(caller))
        self._export = trace_service_pb2_grpc.TraceServiceStub(self.channel).Export
        self._get_trace = tracestore_pb2_grpc.TraceStoreStub(self.channel).GetTrace

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def export(self, *spans: Span, service: str = "signer") -> ExportTraceServiceResponse:
        reply: ExportTraceServiceResponse = await self._export(request_of(*spans, service=service), timeout=30)
        return reply

    async def trace(self, trace_id: bytes) -> list[ResourceSpans]:
        reply = await self._get_trace(tracestore_pb2.GetTraceRequest(trace_id=trace_id.hex()), timeout=30)
        assert reply.trace_id == trace_id.hex()
        return [ResourceSpans.FromString(one) for one in reply.resource_spans]


def span_of(trace_id: bytes, start_ns: int, name: str = "signer.sign") -> Span:
    span = Span(
        trace_id=trace_id,
        span_id=secrets.token_bytes(8),
        name=name,
        start_time_unix_nano=start_ns,
        end_time_unix_nano=start_ns + 1_000_000,
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


async def test_acknowledged_spans_survive_sigkill(store: Store) -> None:
    traces = [secrets.token_bytes(16) for _ in range(40)]
    acknowledged: list[bytes] = []
    async with store.running() as process, Client(store) as client:

        async def send(trace_id: bytes) -> None:
            await client.export(*(span_of(trace_id, number + 1) for number in range(25)))
            acknowledged.append(trace_id)
            if len(acknowledged) == 20:
                process.kill()

        await asyncio.gather(*(send(trace_id) for trace_id in traces[:19]))
        # From here calls are in flight when the process dies, right after the twentieth acknowledgement.
        await asyncio.gather(*(send(trace_id) for trace_id in traces[19:]), return_exceptions=True)
        assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
    assert len(acknowledged) >= 20
    async with store.running(), Client(store) as client:
        for trace_id in acknowledged:
            assert len(await client.trace(trace_id)) == 25


async def test_exact_bytes_come_back_by_start_time_with_their_resource(store: Store) -> None:
    trace_id = secrets.token_bytes(16)
    spans = [span_of(trace_id, start_ns) for start_ns in (30, 10, 20)]
    # A field of a later version of OTLP: number 1000, bytes.
    spans[0].MergeFromString(b"\xc2\x3e\x05later")
    async with store.running(), Client(store) as client:
        await client.export(*spans)
        stored = await client.trace(trace_id)
    assert spans_in(stored) == [spans[index].SerializeToString() for index in (1, 2, 0)]
    for one in stored:
        expected = request_of(one.scope_spans[0].spans[0], service="signer").resource_spans[0]
        assert one == expected


async def test_duplicates_are_stored_once(store: Store) -> None:
    trace_id = secrets.token_bytes(16)
    span = span_of(trace_id, 1)
    async with store.running(), Client(store) as client:
        await asyncio.gather(*(client.export(span, span) for _ in range(8)))
        await client.export(span)
        assert spans_in(await client.trace(trace_id)) == [span.SerializeToString()]
        # The same ids with other bytes are another span: nothing that was acknowledged is overwritten.
        changed = Span.FromString(span.SerializeToString())
        changed.name = "changed"
        await client.export(changed)
        assert len(await client.trace(trace_id)) == 2


async def test_ten_thousand_spans_in_one_go(store: Store) -> None:
    trace_id = secrets.token_bytes(16)
    spans = [span_of(trace_id, number + 1) for number in range(10_000)]
    async with store.running(), Client(store) as client:
        await client.export(*spans)
        stored = await client.trace(trace_id)
    assert spans_in(stored) == [span.SerializeToString() for span in spans]


async def test_malformed_spans_are_rejected_and_the_rest_stored(store: Store) -> None:
    trace_id = secrets.token_bytes(16)
    good = span_of(trace_id, 1, name="nul \0 in the name")
    bad = [span_of(trace_id, 2) for _ in range(6)]
    bad[0].trace_id = b""
    bad[1].trace_id = bytes(16)
    bad[2].trace_id = b"x" * 17
    bad[3].span_id = bytes(8)
    bad[4].span_id = b"x" * 7
    bad[5].start_time_unix_nano = 2**63
    async with store.running(), Client(store) as client:
        reply = await client.export(*bad[:3], good, *bad[3:], service="sig\0ner")
        assert reply.partial_success.rejected_spans == 6
        assert reply.partial_success.error_message == "trace_id: the rule is that it is 16 bytes, not all zero"
        assert spans_in(await client.trace(trace_id)) == [good.SerializeToString()]
        only_bad = await client.export(bad[3])
        assert only_bad.partial_success.rejected_spans == 1
        assert "span_id" in only_bad.partial_success.error_message
        assert not (await client.export()).HasField("partial_success")


async def test_malformed_and_unknown_trace_ids_and_unlisted_callers_are_refused(store: Store) -> None:
    async with store.running():
        async with Client(store) as client:
            for malformed in ("", "0" * 31, "G" * 32, "A" * 32, "\N{ARABIC-INDIC DIGIT ONE}" * 32):
                with pytest.raises(WalletError) as raised:
                    await client._get_trace(tracestore_pb2.GetTraceRequest(trace_id=malformed))
                assert raised.value.reason is Reason.INVALID_REQUEST
                assert raised.value.details["field"] == "trace_id"
            with pytest.raises(WalletError) as unknown:
                await client.trace(secrets.token_bytes(16))
        async with Client(store, "stranger") as client:
            with pytest.raises(WalletError) as unlisted:
                await client.export(span_of(secrets.token_bytes(16), 1))
    assert unknown.value.reason is Reason.NOT_FOUND
    assert unlisted.value.reason is Reason.CALLER_NOT_ALLOWED


async def test_database_gone_refuses_and_loses_nothing(store: Store) -> None:
    trace_id = secrets.token_bytes(16)
    span = span_of(trace_id, 1)
    async with store.running(), Client(store) as client:
        await client.export(span_of(trace_id, 2))
        await asyncio.to_thread(store.postgres.stop)
        with pytest.raises(WalletError) as raised:
            await client.export(span)
        assert raised.value.reason is Reason.DATABASE_UNAVAILABLE
        await asyncio.to_thread(store.postgres.start)
        await client.export(span)
        assert len(await client.trace(trace_id)) == 2


async def test_spans_of_a_process_arrive_and_export_is_never_traced(store: Store) -> None:
    async with store.running() as process, Client(store) as client:
        made = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", _ONE_SPAN],
            env=store.environment("signer"),
            cwd=os.getcwd(),
            capture_output=True,
            text=True,
            check=True,
        )
        trace_id = bytes.fromhex(made.stdout[3:35])
        assert (made.stdout.count("\n"), made.stderr) == (1, "")
        (stored,) = await client.trace(trace_id)
        assert stored.scope_spans[0].spans[0].name == "signer.token"
        assert [one.value.string_value for one in stored.resource.attributes if one.key == "service.name"] == ["signer"]
        process.terminate()
        # Graceful: exit status 0, and its own spans were sent first.
        assert await asyncio.to_thread(process.wait, 20) == 0
    names = store.postgres.execute("SELECT DISTINCT name FROM tracestore.spans WHERE service = 'tracestore'")
    assert names == "wallet.v1.TraceStore/GetTrace"


def test_the_serving_role_can_neither_change_nor_delete(store: Store) -> None:
    rights = store.postgres.execute(
        "SELECT string_agg(DISTINCT privilege_type, ',' ORDER BY privilege_type)"
        " FROM information_schema.table_privileges WHERE table_schema = 'tracestore' AND grantee = 'tracestore'"
    )
    assert rights == "INSERT,SELECT"


async def test_every_line_that_the_process_prints_is_json(store: Store) -> None:
    async with store.running() as process, Client(store, "stranger") as client:
        with pytest.raises(WalletError):
            await client.trace(secrets.token_bytes(16))
        # A peer without TLS: gRPC's own complaint about it must not reach the log either.
        with socket.create_connection(("127.0.0.1", store.port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await asyncio.to_thread(plain.recv, 1)
        process.terminate()
        await asyncio.to_thread(process.wait, 20)
    lines = [json.loads(line) for line in store.log.read_text().splitlines()]
    assert "stopping" in [line["message"] for line in lines]
    assert {line["service"] for line in lines} == {"tracestore"}


def test_migrate_by_command_runs_again_without_harm(store: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.tracestore", "migrate"],
        env={"PATH": os.defpath, **store.database},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert store.postgres.execute("SELECT version_num FROM tracestore.alembic_version") == "0001"
