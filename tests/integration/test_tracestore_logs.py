"""Log records over OTLP: kept to the byte, acknowledged after the commit, read back by their trace."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Callable, Iterator

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from services.core.errors import Reason, WalletError
from tests.integration.dependencies import OwnPostgres
from tests.integration.tracestore_harness import Client, Store, a_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, own_postgres: Callable[[], OwnPostgres]) -> Iterator[Store]:
    with own_postgres() as postgres, a_store(tmp_path_factory.mktemp("logs"), postgres) as made:
        yield made


def record_of(trace_id: bytes, time_ns: int, text: str = "signed") -> LogRecord:
    record = LogRecord(time_unix_nano=time_ns, trace_id=trace_id, span_id=secrets.token_bytes(8), severity_number=9)
    record.body.string_value = text
    record.attributes.add(key="wallet.signature.status").value.string_value = "success"
    return record


def request_of(*records: LogRecord, service: str = "signer") -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    resource_logs = request.resource_logs.add(schema_url="https://opentelemetry.io/schemas/1.30.0")
    resource_logs.resource.attributes.add(key="service.name").value.string_value = service
    resource_logs.scope_logs.add(log_records=records).scope.name = "services.signer"
    return request


async def test_records_of_a_trace_come_back_by_time_with_their_resource(store: Store) -> None:
    trace_id, other = secrets.token_bytes(16), secrets.token_bytes(16)
    records = [record_of(trace_id, time_ns) for time_ns in (30, 10, 20)]
    # Only when it was observed is known; and a field of a later version.
    records[1].time_unix_nano, records[1].observed_time_unix_nano = 0, 10
    records[2].MergeFromString(b"\xc2\x3e\x05later")
    untraced = LogRecord(time_unix_nano=1)
    async with store.running(), Client(store, "jaeger-collector") as collector, Client(store) as client:
        for _ in range(2):
            reply = await collector.export_logs(request_of(*records, record_of(other, 1), untraced))
            assert not reply.HasField("partial_success")
        await collector.export_logs(request_of(records[0], service="gateway"))
        found = await client.logs(trace_id)
        assert await client.logs(secrets.token_bytes(16)) == []
        with pytest.raises(WalletError) as raised:
            await client.logs(b"short")
        assert raised.value.reason is Reason.INVALID_REQUEST
    expected = [request_of(record).resource_logs[0] for record in (records[1], records[2], records[0])]
    assert found[:2] == expected[:2]
    # The same record of two services is two records.
    by_gateway = request_of(records[0], service="gateway").resource_logs[0]
    assert sorted(map(repr, found[2:])) == sorted(map(repr, (expected[2], by_gateway)))
    assert store.postgres.execute("SELECT count(*) FROM tracestore.logs WHERE trace_id = ''") == "1"


async def test_malformed_records_are_refused_by_name_and_the_rest_stored(store: Store) -> None:
    trace_id = secrets.token_bytes(16)
    bad = [record_of(trace_id, 1) for _ in range(4)]
    bad[0].trace_id = b"short"
    bad[1].span_id = b"short"
    bad[2].time_unix_nano = 2**63
    bad[3].body.bytes_value = bytes(4 * 1024 * 1024)
    async with store.running(), Client(store) as client:
        reply = await client.export_logs(request_of(*bad[:2], record_of(trace_id, 7), *bad[2:]))
        assert reply.partial_success.rejected_log_records == 4
        assert reply.partial_success.error_message == "trace_id: the rule is that it is 16 bytes, or none"
        assert len(await client.logs(trace_id)) == 1


async def test_more_than_a_message_holds_comes_in_several(store: Store) -> None:
    trace_id = secrets.token_bytes(16)
    records = [record_of(trace_id, number + 1, "x" * 100_000) for number in range(100)]
    async with store.running(), Client(store) as client:
        await client.export_logs(request_of(*records))
        found = await client.logs(trace_id)
    assert [one.scope_logs[0].log_records[0] for one in found] == records


async def test_acknowledged_records_survive_sigkill(store: Store) -> None:
    traces = [secrets.token_bytes(16) for _ in range(40)]
    acknowledged: list[bytes] = []
    async with store.running() as process, Client(store) as client:

        async def send(trace_id: bytes) -> None:
            await client.export_logs(request_of(*(record_of(trace_id, number + 1) for number in range(25))))
            acknowledged.append(trace_id)
            if len(acknowledged) == 20:
                process.kill()

        await asyncio.gather(*(send(trace_id) for trace_id in traces), return_exceptions=True)
        assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
    assert len(acknowledged) >= 20
    async with store.running(), Client(store) as client:
        for trace_id in acknowledged:
            assert len(await client.logs(trace_id)) == 25
