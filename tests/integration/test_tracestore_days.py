"""Partitions by day of receipt: made ahead, sealed, dropped, and what the revision before left behind."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from services.runtime import migrations
from services.runtime.db import Database, database_url
from services.runtime.settings import SERVICES_DIR, DatabaseSettings
from services.tracestore.days import Days
from services.tracestore.hot import HotStore
from services.tracestore.search import Search, TraceQuery
from services.tracestore.spans import SpanBatch, SpanSplitter
from services.tracestore.store import Store
from tests.integration.dependencies import ServiceDatabase
from tests.integration.tracestore_harness import request_of, span_of
from tools.stack.postgres import StackError, create_schemas


@pytest.fixture
def made(service_database: Callable[[str], ServiceDatabase]) -> ServiceDatabase:
    return service_database("tracestore")


@pytest.fixture
async def database(made: ServiceDatabase) -> AsyncIterator[Database]:
    database = Database(made.settings)
    yield database
    await database.close()


def batch_of(trace_id: bytes, *starts: int) -> SpanBatch:
    spans = [span_of(trace_id, start_ns) for start_ns in starts]
    return SpanSplitter().split(request_of(*spans, service="signer").SerializeToString())


def today() -> date:
    return datetime.now(UTC).date()


def partition(day: date, parent: str = "spans") -> str:
    return f"tracestore.{parent}_{day:%Y%m%d}"


def add_day(made: ServiceDatabase, day: date) -> None:
    made.server.execute(f"SET ROLE tracestore_owner; SELECT tracestore.make_day('{day}')")


async def count_of(database: Database, trace_id: bytes) -> int:
    return sum([len(page) async for page in HotStore(database).trace(trace_id)])


async def test_replicas_make_the_next_days_at_the_same_time(made: ServiceDatabase) -> None:
    made.server.execute(
        "DO $$ DECLARE one regclass; BEGIN FOR one IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent IN"
        " ('tracestore.spans'::regclass, 'tracestore.logs'::regclass) LOOP EXECUTE 'DROP TABLE ' || one;"
        " END LOOP; END $$"
    )
    replicas = [Database(made.settings) for _ in range(4)]
    try:
        await asyncio.gather(*(Days(replica).make() for replica in replicas for _ in range(3)))
        days = await replicas[0].rows("SELECT day, sealed FROM tracestore.days ORDER BY day")
    finally:
        for replica in replicas:
            await replica.close()
    first = days[0]["day"]
    assert first in (today(), today() - timedelta(days=1))
    assert [(one["day"], one["sealed"]) for one in days] == [(first + timedelta(days=n), False) for n in range(4)]
    assert made.server.execute(f"SELECT to_regclass('{partition(first, 'logs')}') IS NOT NULL") == "t"


async def test_spans_that_find_no_partition_make_it(made: ServiceDatabase, database: Database) -> None:
    for day in (today(), today() + timedelta(days=1)):
        made.server.execute(f"DROP TABLE {partition(day)}, {partition(day, 'logs')}")
    trace_id = secrets.token_bytes(16)
    await Store(database, Days(database)).insert_spans([batch_of(trace_id, 1, 2, 3)])
    assert await count_of(database, trace_id) == 3


async def test_a_span_received_on_two_days_is_read_once(made: ServiceDatabase, database: Database) -> None:
    trace_id = secrets.token_bytes(16)
    batch = batch_of(trace_id, 1, 2)
    await Store(database, Days(database)).insert_spans([batch])
    yesterday = today() - timedelta(days=1)
    add_day(made, yesterday)
    copied = made.server.execute(
        "INSERT INTO tracestore.spans SELECT (jsonb_populate_record(spans, jsonb_build_object('received_on',"
        f" '{yesterday}'))).* FROM tracestore.spans WHERE trace_id = '\\x{trace_id.hex()}' RETURNING 1"
    )
    assert copied.split() == ["1", "1"]
    assert await count_of(database, trace_id) == 2
    assert await Search(HotStore(database)).find(TraceQuery(name="signer.sign")) == [trace_id]


async def test_a_day_is_dropped_when_it_is_over_sealed_and_kept_elsewhere(
    made: ServiceDatabase, database: Database
) -> None:
    day = today() - timedelta(days=3)
    add_day(made, day)
    trace_id = secrets.token_bytes(16)
    await Store(database, Days(database)).insert_spans([batch_of(trace_id, 1, 2, 3)])
    made.server.execute(
        "INSERT INTO tracestore.spans SELECT (jsonb_populate_record(spans, jsonb_build_object('received_on',"
        f" '{day}'))).* FROM tracestore.spans"
    )

    async def refusal(statement: str, *arguments: object) -> str:
        with pytest.raises(Exception, match=r"the rule is|it holds") as raised:
            await database.rows(statement, *arguments)
        return str(raised.value)

    seal, drop = "SELECT * FROM tracestore.seal_day($1)", "SELECT tracestore.drop_day($1, $2, $3)"
    assert "it is over" in await refusal(seal, today())
    assert "it is over" in await refusal(seal, today() + timedelta(days=1))
    assert "it is sealed" in await refusal(drop, day, 3, 0)
    for _ in range(2):
        assert [tuple(row) for row in await database.rows(seal, day)] == [(3, 0)]
    assert [row[0] for row in await database.rows("SELECT day FROM tracestore.days WHERE sealed")] == [day]
    # Readable still, and closed to whoever comes late.
    assert await count_of(database, trace_id) == 3
    with pytest.raises(StackError, match="sealed"):
        made.server.execute(
            "INSERT INTO tracestore.spans SELECT (jsonb_populate_record(spans, jsonb_build_object('received_on',"
            f" '{day}', 'start_ns', 77))).* FROM tracestore.spans"
        )
    for spans, logs in ((2, 0), (4, 0), (3, 1)):
        assert "it holds 3 spans and 0 log records" in await refusal(drop, day, spans, logs)
    await database.rows(drop, day, 3, 0)
    assert await database.rows("SELECT day FROM tracestore.days WHERE sealed") == []
    assert await count_of(database, trace_id) == 3


async def test_the_serving_role_can_do_nothing_else_to_tables(database: Database) -> None:
    for statement in (
        f"DROP TABLE {partition(today())}",
        f"ALTER TABLE tracestore.spans DETACH PARTITION {partition(today())}",
        f"DELETE FROM {partition(today())}",
        f"SELECT 1 FROM {partition(today())}",
        "DELETE FROM tracestore.spans",
        "UPDATE tracestore.spans SET name = ''",
        "TRUNCATE tracestore.logs",
        "CREATE TABLE tracestore.mine (n int)",
        f"SELECT tracestore.make_day('{today() + timedelta(days=40)}')",
        "CREATE OR REPLACE FUNCTION tracestore.make_days(ahead integer) RETURNS void LANGUAGE sql AS ''",
    ):
        async with database.engine.connect() as connection:
            with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
                await connection.execute(text(statement))


async def test_rows_of_the_first_revision_go_on_and_so_does_its_service(made: ServiceDatabase) -> None:
    made.server.execute("DROP SCHEMA tracestore CASCADE")
    create_schemas(made.server, ["tracestore"])
    await _to_first(made.owner_settings)
    days = [today() - timedelta(days=n) for n in (5, 2, 0)]
    batches = {day: batch_of(secrets.token_bytes(16), 1, 2, 3) for day in days}
    for day, batch in batches.items():
        for sha256, head in batch.heads.items():
            made.server.execute(
                f"INSERT INTO tracestore.scopes VALUES ('\\x{sha256.hex()}', '\\x{head.hex()}') ON CONFLICT DO NOTHING"
            )
        for row in batch.rows:
            made.server.execute(
                "INSERT INTO tracestore.spans (trace_id, span_id, sha256, start_ns, received_on, received_at, service,"
                f" name, scope_sha256, span) VALUES ('\\x{row.trace_id.hex()}', '\\x{row.span_id.hex()}',"
                f" '\\x{row.sha256.hex()}', {row.start_ns}, '{day}', '{day} 12:00Z', '{row.service}', '{row.name}',"
                f" '\\x{row.scope_sha256.hex()}', '\\x{row.span.hex()}')"
            )
    await migrations.migrate("tracestore", made.owner_settings)
    database = Database(made.settings)
    try:
        hot = HotStore(database)
        for batch in batches.values():
            kept = [record.content async for page in hot.trace(batch.rows[0].trace_id) for record in page]
            assert kept == [row.span for row in batch.rows]
        received = await database.rows(
            "SELECT received_on, count(*) FROM tracestore.spans WHERE received_at::date = received_on GROUP BY 1"
        )
        assert {row[0]: row[1] for row in received} == dict.fromkeys(days, 3)
        assert {row[0] for row in await database.rows("SELECT day FROM tracestore.days")} >= set(days)
        assert await hot.services() == ["signer"]
        found = await Search(hot).find(
            TraceQuery(service="signer", attributes=((b"wallet.signature.status", b"success"),))
        )
        assert set(found) == {batch.rows[0].trace_id for batch in batches.values()}
        # A batch that comes again today is not there twice for a reader.
        (batch, *_) = batches.values()
        await Store(database, Days(database)).insert_spans([batch])
        assert await count_of(database, batch.rows[0].trace_id) == 3
        await _first_revision_serves(database)
    finally:
        await database.close()


async def _first_revision_serves(database: Database) -> None:
    """By the statements of revision 0001's store."""
    trace_id = secrets.token_bytes(16)
    (row,) = batch_of(trace_id, 9).rows
    for _ in range(2):
        await database.rows(
            "INSERT INTO tracestore.spans (trace_id, span_id, sha256, start_ns, service, name, scope_sha256, span)"
            " SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bigint[], $5::text[], $6::text[],"
            " $7::bytea[], $8::bytea[]) ON CONFLICT DO NOTHING",
            *([one] for one in (trace_id, row.span_id, row.sha256, 9, "signer", "x", row.scope_sha256, row.span)),
        )
    read = await database.rows(
        "SELECT scope, span FROM tracestore.spans JOIN tracestore.scopes ON scopes.sha256 = spans.scope_sha256"
        " WHERE trace_id = $1 ORDER BY start_ns, span_id, spans.sha256",
        trace_id,
    )
    assert [hashlib.sha256(one["span"]).digest() for one in read] == [row.sha256]
    assert ResourceSpans.FromString(read[0]["scope"]).scope_spans[0].scope.name == "goldenlink.rpc"


async def _to_first(settings: DatabaseSettings) -> None:
    """The schema as the first revision made it."""
    engine = create_async_engine(database_url(settings, settings.database_owner_password_file, role="tracestore_owner"))
    async with engine.connect() as connection:
        await connection.execute(text('SET search_path TO "tracestore"'))
        await connection.commit()
        await connection.run_sync(_upgrade_to_first)
        await connection.commit()
    await engine.dispose()


def _upgrade_to_first(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent / "alembic"))
    config.set_main_option("version_locations", str(SERVICES_DIR / "tracestore" / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["schema"] = "tracestore"
    command.upgrade(config, "0001")
