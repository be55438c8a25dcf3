"""Search in a real PostgreSQL: what it finds is what looking at every span finds."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from protos.wallet.v1.otlp_parts_pb2 import OtlpAttribute
from services.runtime.db import Database
from services.tracestore import search as search_module
from services.tracestore.attributes import attribute_token, value_text
from services.tracestore.days import Days
from services.tracestore.hot import HotStore
from services.tracestore.search import Pair, Search, TraceQuery
from services.tracestore.spans import SpanSplitter
from services.tracestore.store import Store
from tests.integration.dependencies import ServiceDatabase

_SEED = 20_261_124
_SERVICES, _NAMES = ("signer", "gateway", "keys"), ("sign", "send", "wrap", "n" * 300, "n" * 299)
_VALUES: tuple[str | bool | int | float, ...] = ("a", "b", True, 1, 0.5, "1", "true")


class Stored:
    """A store and a search on one database, and what was put in, to compare with."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._store, self._splitter = Store(database, Days(database)), SpanSplitter()
        self.search = Search(HotStore(database))
        # (service, pairs of resource and scope, span)
        self.spans: list[tuple[str, set[Pair], Span]] = []

    async def put(self, service: str, outside: dict[str, str | bool | int | float], *spans: Span) -> None:
        request = ExportTraceServiceRequest()
        resource_spans = request.resource_spans.add()
        resource_spans.resource.attributes.add(key="service.name").value.string_value = service
        scope = resource_spans.scope_spans.add(spans=spans).scope
        for number, (key, value) in enumerate(outside.items()):
            holder = resource_spans.resource if number % 2 else scope
            _set(holder.attributes.add(key=key), value)
        await self._store.insert_spans([self._splitter.split(request.SerializeToString())])
        pairs = {*_pairs(resource_spans.resource.attributes), *_pairs(scope.attributes)}
        self.spans += [(service, pairs, span) for span in spans]

    def expected(self, query: TraceQuery) -> list[bytes]:
        """By looking at everything."""
        newest: dict[bytes, int] = {}
        for service, outside, span in self.spans:
            if _matches(query, service, outside, span):
                newest[span.trace_id] = max(newest.get(span.trace_id, 0), span.start_time_unix_nano)
        return sorted(newest, key=lambda trace_id: -newest[trace_id])


def _matches(query: TraceQuery, service: str, outside: set[Pair], span: Span) -> bool:
    is_error = span.status.code == Span().status.STATUS_CODE_ERROR
    inside = {*_pairs(span.attributes), *(pair for event in span.events for pair in _pairs(event.attributes))}
    inside.add((b"error", b"true" if is_error else b"false"))
    duration_ns = max(span.end_time_unix_nano - span.start_time_unix_nano, 0)
    return (
        query.service in ("", service)
        and query.name in ("", span.name)
        and query.start_min_ns <= span.start_time_unix_nano <= query.start_max_ns
        and query.duration_min_ns <= duration_ns <= query.duration_max_ns
        and set(query.attributes) <= inside | outside
    )


def _pairs(attributes: object) -> set[Pair]:
    read = [OtlpAttribute.FromString(one.SerializeToString()) for one in attributes]  # type: ignore[attr-defined]
    return {(one.key, value_text(one.value)) for one in read}


def _set(attribute: KeyValue, value: str | bool | int | float) -> None:
    kinds = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}
    setattr(attribute.value, kinds[type(value)], value)


@pytest.fixture
async def stored(service_database: Callable[[str], ServiceDatabase]) -> AsyncIterator[Stored]:
    database = Database((await asyncio.to_thread(service_database, "tracestore")).settings)
    yield Stored(database)
    await database.close()


def _random_span(draw: random.Random, trace_id: bytes, start_ns: int) -> Span:
    span = Span(
        trace_id=trace_id,
        span_id=draw.randbytes(8),
        name=draw.choice(_NAMES),
        start_time_unix_nano=start_ns,
        end_time_unix_nano=start_ns + draw.choice((0, 5, 1_000, 10**9)),
    )
    span.status.code = draw.choice((Span().status.STATUS_CODE_UNSET, Span().status.STATUS_CODE_ERROR))
    for key in draw.sample(("k", "l", "m"), draw.randrange(3)):
        _set(span.attributes.add(key=key), draw.choice(_VALUES))
    if draw.random() < 0.3:
        _set(span.events.add(name="e").attributes.add(key=draw.choice(("k", "in event"))), draw.choice(_VALUES))
    if draw.random() < 0.1:
        for number in range(200):
            _set(span.attributes.add(key=f"many {number}"), number)
    return span


def _random_query(draw: random.Random) -> TraceQuery:
    query = TraceQuery(depth=10_000)
    keys = ("k", "l", "in event", "outside", "error", "many 7", "service.name", "none has it")
    for key in draw.sample(keys, draw.choice((0, 1, 1, 2))):
        text = draw.choice(("a", "1", "true", "false", "0.5", "7", "signer"))
        query = replace(query, attributes=(*query.attributes, (key.encode(), text.encode())))
    if draw.random() < 0.5:
        query = replace(query, service=draw.choice(_SERVICES))
    if draw.random() < 0.3:
        query = replace(query, name=draw.choice(_NAMES))
    if draw.random() < 0.3:
        query = replace(
            query, duration_min_ns=draw.choice((1, 5, 6, 10**9)), duration_max_ns=draw.choice((10**9, 2**62))
        )
    if draw.random() < 0.3:
        query = replace(query, start_min_ns=draw.randrange(1_000), start_max_ns=draw.randrange(1_000, 2_000))
    return query


@pytest.mark.parametrize("few", [0, 10, 5_000], ids=["always back in time", "either", "always by token"])
async def test_what_is_found_is_what_looking_at_every_span_finds(
    stored: Stored, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "_FEW", few)
    for name, rows in (("_ROWS", 90), ("_ROWS_WITH_SPANS", 60), ("_SMALL_BYTES", 2_000), ("_SKIPPED", 3)):
        monkeypatch.setattr(search_module, name, rows)
    draw = random.Random(_SEED)
    traces = [draw.randbytes(16) for _ in range(40)]
    # Each start once: what comes first is not left to chance.
    starts = iter(draw.sample(range(2_000), 400))
    for _ in range(40):
        outside = {"outside": draw.choice(_VALUES), "k": draw.choice(_VALUES)} if draw.random() < 0.5 else {}
        spans = [_random_span(draw, draw.choice(traces), next(starts)) for _ in range(10)]
        await stored.put(draw.choice(_SERVICES), outside, *spans)
    sizes = []
    for _ in range(60):
        query = _random_query(draw)
        expected = stored.expected(query)
        assert await stored.search.find(query) == expected, query
        assert await stored.search.find(replace(query, depth=3)) == expected[:3], query
        sizes.append(len(expected))
    assert min(sizes) == 0
    assert max(sizes) == 40


async def test_two_values_of_one_token_are_told_apart(stored: Stored) -> None:
    one, other = b"29685295", b"32060020"
    assert attribute_token(b"key", one) == attribute_token(b"key", other)
    traces = {}
    for value in (one, other):
        traces[value] = secrets.token_bytes(16)
        span = Span(trace_id=traces[value], span_id=b"s" * 8, start_time_unix_nano=1)
        _set(span.attributes.add(key="key"), value.decode())
        await stored.put("signer", {}, span)
    for value, trace_id in traces.items():
        assert await stored.search.find(TraceQuery(attributes=((b"key", value),))) == [trace_id]


async def test_spans_of_the_version_before_are_found_by_their_bytes(stored: Stored) -> None:
    trace_id = secrets.token_bytes(16)
    span = Span(trace_id=trace_id, span_id=b"s" * 8, name="sign", start_time_unix_nano=10, end_time_unix_nano=30)
    _set(span.attributes.add(key="key"), 7)
    await stored.put("signer", {}, Span(trace_id=b"t" * 16, span_id=b"s" * 8, start_time_unix_nano=5))
    content = span.SerializeToString()
    # The statement of revision 0001's store.
    await stored.database.rows(
        "INSERT INTO tracestore.spans (trace_id, span_id, sha256, start_ns, service, name, scope_sha256, span)"
        " SELECT $1, $2, sha256($3), 10, 'signer', 'sign', sha256, $3 FROM tracestore.scopes"
        " ON CONFLICT DO NOTHING",
        trace_id,
        span.span_id,
        content,
    )
    for query, expected in (
        (TraceQuery(attributes=((b"key", b"7"),)), [trace_id]),
        (TraceQuery(attributes=((b"key", b"8"),)), []),
        (TraceQuery(name="sign", duration_min_ns=20), [trace_id]),
        (TraceQuery(duration_min_ns=21), []),
    ):
        assert await stored.search.find(query) == expected, query
