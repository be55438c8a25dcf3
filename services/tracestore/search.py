"""Which traces a query is about: newest first, as many as asked for. docs/TRACES.md says what matches.

(a) Attributes of resources and scopes are looked for among the heads, which are few; those of spans by their tokens.
(b) If few spans have all the tokens, the index of tokens finds them. (c) Else they are frequent, and going back in time
meets enough of them soon. Which of the two, a count decides, not the planner: its statistics are of yesterday's day.
(4) Tokens and columns only suggest: what decides is the span's bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from protos.wallet.v1.otlp_parts_pb2 import OtlpSpan, OtlpSpanDetails
from services.tracestore.attributes import (
    ERROR_KEY,
    STATUS_ERROR,
    UNDESCRIBED,
    attribute_pairs,
    attribute_token,
    duration_tokens,
    name_token,
)
from services.tracestore.hot import HotStore
from services.tracestore.otlp import MAX_TEXT, column_text, head_attributes
from services.tracestore.spans import MAX_BIGINT

# Key and text of an attribute (`attributes.value_text`).
Pair = tuple[bytes, bytes]

# So many spans are few. Sorting them costs what going back over ten times as many does.
_FEW = 5_000
# Of a page. Spans above the size are fetched one by one.
_ROWS, _ROWS_WITH_SPANS, _SMALL_BYTES = 1_000, 250, 16_384
# Traces that the next page need not show again.
_SKIPPED = 200
_HEADS_AT_ONCE = 500

_HEADS_WITH = "SELECT sha256 FROM tracestore.scopes WHERE position($1 IN scope) > 0"
_SPAN = (
    "SELECT span FROM tracestore.spans WHERE trace_id = $1 AND start_ns = $2 AND span_id = $3 AND sha256 = $4 LIMIT 1"
)


@dataclass(frozen=True)
class TraceQuery:
    """What one span of a trace is to have, all of it; texts are empty for any. Bounds are included."""

    service: str = ""
    name: str = ""
    attributes: tuple[Pair, ...] = ()
    start_min_ns: int = 0
    start_max_ns: int = MAX_BIGINT
    duration_min_ns: int = 0
    duration_max_ns: int = MAX_BIGINT
    depth: int = 100


class _Condition:
    """SQL with numbered arguments."""

    def __init__(self) -> None:
        self.arguments: list[object] = []

    def argument(self, value: object) -> str:
        self.arguments.append(value)
        return f"${len(self.arguments)}"


class Search:
    def __init__(self, hot: HotStore) -> None:
        self._hot = hot

    async def find(self, query: TraceQuery) -> list[bytes]:
        """Trace ids by the start of their newest matching span.

        Raises:
            WalletError: DATABASE_UNAVAILABLE.
        """
        found: dict[bytes, None] = {}
        async for trace_id in self._matches(query, found):
            found[trace_id] = None
            if len(found) == query.depth:
                break
        return list(found)

    async def _matches(self, query: TraceQuery, found: dict[bytes, None]) -> AsyncIterator[bytes]:
        # (a)
        heads = {pair: await self._heads_with(pair) for pair in query.attributes}
        tokens = _token_groups(query, {pair for pair, having in heads.items() if not having})
        # (b) (c)
        source = "tracestore.spans"
        few = bool(tokens) and await self._are_few(tokens)
        read_spans = (
            bool(query.attributes) or _is_bounded(query) or max(len(query.name), len(query.service)) >= MAX_TEXT
        )
        page_rows = _ROWS_WITH_SPANS if read_spans else _ROWS
        last: tuple[int, bytes, bytes] = (query.start_max_ns, b"\xff" * 9, b"")
        while True:
            condition = _Condition()
            wheres = self._wheres(condition, query, heads, last, list(found)[-_SKIPPED:])
            if few:
                having = " AND ".join(f"tokens && {condition.argument(group)}::integer[]" for group in tokens)
                source = f"(SELECT * FROM tracestore.spans WHERE {having} OFFSET 0) AS few"  # noqa: S608 - numbers only
            else:
                # IS TRUE keeps it off the index.
                wheres += [f"(tokens && {condition.argument(group)}::integer[]) IS TRUE" for group in tokens]
            span = f"CASE WHEN octet_length(span) <= {_SMALL_BYTES} THEN span END" if read_spans else "NULL::bytea"
            rows = await (self._hot.rows if few else self._hot.rows_in_order)(
                f"SELECT trace_id, start_ns, span_id, sha256, scope_sha256, {span} AS span FROM {source}"  # noqa: S608
                f" WHERE {' AND '.join(wheres)} ORDER BY start_ns DESC, span_id DESC, sha256 DESC LIMIT {page_rows}",
                *condition.arguments,
            )
            # (4)
            for row in rows:
                trace_id: bytes = row["trace_id"]
                if trace_id not in found and (not read_spans or await self._is_match(query, heads, row)):
                    yield trace_id
            if len(rows) < page_rows:
                return
            last = rows[-1]["start_ns"], rows[-1]["span_id"], rows[-1]["sha256"]

    def _wheres(
        self,
        condition: _Condition,
        query: TraceQuery,
        heads: dict[Pair, frozenset[bytes]],
        last: tuple[int, bytes, bytes],
        skipped: list[bytes],
    ) -> list[str]:
        argument = condition.argument
        start_ns = argument(last[0])
        wheres = [
            f"start_ns BETWEEN {argument(query.start_min_ns)} AND {start_ns}",
            f"(start_ns, span_id, sha256) < ({start_ns}, {argument(last[1])}, {argument(last[2])})",
        ]
        if query.service:
            wheres.append(f"service = {argument(column_text(query.service.encode()))}")
        if query.name:
            wheres.append(f"name = {argument(column_text(query.name.encode()))}")
        if _is_bounded(query):
            least, most = argument(query.duration_min_ns), argument(query.duration_max_ns)
            wheres.append(f"(duration_ns BETWEEN {least} AND {most} OR duration_ns IS NULL)")
        for (key, text), having in heads.items():
            if (key, text) == (ERROR_KEY, b"false"):
                wheres.append(f"status IS DISTINCT FROM {STATUS_ERROR}")
            elif having:
                token = argument([attribute_token(key, text), UNDESCRIBED])
                wheres.append(
                    f"(tokens && {token}::integer[] OR scope_sha256 = ANY({argument(list(having))}::bytea[]))"
                )
        if skipped:
            wheres.append(f"trace_id <> ALL({argument(skipped)}::bytea[])")
        return wheres

    async def _are_few(self, tokens: list[list[int]]) -> bool:
        having = " AND ".join(f"tokens && ${number}::integer[]" for number in range(1, len(tokens) + 1))
        statement = f"SELECT count(*) FROM (SELECT FROM tracestore.spans WHERE {having} LIMIT {_FEW + 1}) AS probe"  # noqa: S608
        return int((await self._hot.rows(statement, *tokens))[0][0]) <= _FEW

    async def _heads_with(self, pair: Pair) -> frozenset[bytes]:
        """Those whose resource or scope has the attribute."""
        if pair[0] == ERROR_KEY:
            return frozenset()
        candidates = [row[0] for row in await self._hot.rows(_HEADS_WITH, pair[0])]
        having: set[bytes] = set()
        for start in range(0, len(candidates), _HEADS_AT_ONCE):
            heads = await self._hot.heads(candidates[start : start + _HEADS_AT_ONCE])
            having |= {sha256 for sha256, head in heads.items() if pair in head_attributes(head)}
        return frozenset(having)

    async def _is_match(self, query: TraceQuery, heads: dict[Pair, frozenset[bytes]], row: Any) -> bool:
        span_bytes: bytes | None = row["span"]
        if span_bytes is None:
            identity = row["trace_id"], row["start_ns"], row["span_id"], row["sha256"]
            span_bytes = (await self._hot.rows(_SPAN, *identity))[0][0]
        span = OtlpSpan.FromString(span_bytes)
        if query.name and span.name != query.name.encode():
            return False
        if _is_bounded(query):
            duration_ns = max(span.end_time_unix_nano - span.start_time_unix_nano, 0)
            if not query.duration_min_ns <= duration_ns <= query.duration_max_ns:
                return False
        wanted = {pair for pair in query.attributes if row["scope_sha256"] not in heads[pair]}
        return not wanted or wanted <= _pairs(span_bytes)


def _pairs(span_bytes: bytes) -> set[Pair]:
    """The attributes of a span and of its events, and `error` by its status."""
    details = OtlpSpanDetails.FromString(span_bytes)
    pairs = set(attribute_pairs(details.attributes))
    for event in details.events:
        pairs.update(attribute_pairs(event.attributes))
    pairs.add((ERROR_KEY, b"true" if details.status.code == STATUS_ERROR else b"false"))
    return pairs


def _is_bounded(query: TraceQuery) -> bool:
    return query.duration_min_ns > 0 or query.duration_max_ns < MAX_BIGINT


def _token_groups(query: TraceQuery, attributes: set[Pair]) -> list[list[int]]:
    """A span that matches has one token of each group."""
    groups = [
        [attribute_token(key, text), UNDESCRIBED]
        for key, text in sorted(attributes)
        if (key, text) != (ERROR_KEY, b"false")
    ]
    if query.name:
        groups.append([name_token(query.name.encode()), UNDESCRIBED])
    if _is_bounded(query):
        groups.append([*duration_tokens(query.duration_min_ns, query.duration_max_ns), UNDESCRIBED])
    return groups
