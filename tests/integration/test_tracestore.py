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
from collections.abc import Callable, Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from protos.wallet.v1 import tracestore_pb2
from services.core.errors import Reason, WalletError
from tests.integration.dependencies import OwnPostgres
from tests.integration.tracestore_harness import Client, Store, a_store, request_of, span_of, spans_in

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


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, own_postgres: Callable[[], OwnPostgres]) -> Iterator[Store]:
    with own_postgres() as postgres, a_store(tmp_path_factory.mktemp("tracestore"), postgres) as made:
        yield made


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
                    await client.get_trace(tracestore_pb2.GetTraceRequest(trace_id=malformed))
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
    assert store.postgres.execute("SELECT version_num FROM tracestore.alembic_version") == "0002"
