"""From a span's end to its acknowledgement: nothing is forgotten before, and what is lost is counted by its cause."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, TraceFlags

from services.runtime import span_spooling
from services.runtime.span_counts import SpanCounts
from services.runtime.span_encoding import encode_spans
from services.runtime.span_flags import ORDINARY, SAMPLED
from services.runtime.span_requests import halve
from services.runtime.span_routing import SpanRouting
from services.runtime.span_sender import Answer, Verdict
from services.runtime.span_spooling import SpoolingProcessor, SpoolPlace

_STORED, _LATER, _REFUSED = Answer(Verdict.STORED), Answer(Verdict.LATER), Answer(Verdict.REFUSED)
_RESOURCE = Resource({"service.name": "signer"})
_MAX_BYTES = 4 * 1024 * 1024


def _span(number: int, flags: TraceFlags = SAMPLED, **attributes: object) -> ReadableSpan:
    context = SpanContext(7, number, False, flags)
    return ReadableSpan("step", context, resource=_RESOURCE, attributes=attributes, start_time=1, end_time=2)  # type: ignore[arg-type]


class Collector:
    """Takes a request when its `answer` says so."""

    def __init__(self) -> None:
        self.answer: Callable[[bytes], Answer] = lambda _: _STORED
        self.stored: Counter[int] = Counter()
        self.requests = 0
        self.asked = threading.Event()

    def send(self, request: bytes) -> Answer:
        self.requests += 1
        answer = self.answer(request)
        if answer.verdict is Verdict.STORED:
            self.stored.update(numbers_in(request))
        self.asked.set()
        return answer


def numbers_in(request: bytes) -> list[int]:
    return [
        int.from_bytes(span.span_id, "big")
        for resource in ExportTraceServiceRequest.FromString(request).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


@contextmanager
def process(
    directory: Path | None, collector: Collector, counts: SpanCounts, max_bytes: int = _MAX_BYTES
) -> Iterator[SpoolingProcessor]:
    place = SpoolPlace(directory, "signer", max_bytes, 0.0)
    processor = SpoolingProcessor(collector.send, place, counts, schedule_s=0.02)
    try:
        yield processor
    finally:
        processor.shutdown()


@pytest.fixture
def counts() -> SpanCounts:
    return SpanCounts()


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.mark.parametrize("in_memory", [False, True])
def test_every_span_arrives_and_leaves_no_file(
    tmp_path: Path, collector: Collector, counts: SpanCounts, in_memory: bool
) -> None:
    with process(None if in_memory else tmp_path, collector, counts) as spool:
        for number in range(1, 3001):
            spool.on_end(_span(number))
        assert spool.force_flush()
        assert spool.is_durable is not in_memory
    assert collector.stored == Counter(range(1, 3001))
    assert (counts.acknowledged, counts.spooled, counts.dropped) == (3000, 0 if in_memory else 3000, {})
    assert list(tmp_path.iterdir()) == []


def test_spans_that_end_while_no_collector_answers_arrive_once_one_does(
    tmp_path: Path, collector: Collector, counts: SpanCounts
) -> None:
    collector.answer = lambda _: _LATER
    with process(tmp_path, collector, counts) as spool:
        for number in range(1, 101):
            spool.on_end(_span(number))
        assert collector.asked.wait(5)
        assert collector.stored == Counter()
        assert spool.backlog_bytes > 0
        collector.answer = lambda _: _STORED
        assert spool.force_flush()
    assert collector.stored == Counter(range(1, 101))


def test_what_a_process_leaves_behind_the_next_one_sends(
    tmp_path: Path, collector: Collector, counts: SpanCounts
) -> None:
    collector.answer = lambda _: _LATER
    began = monotonic()
    with process(tmp_path, collector, counts) as spool:
        for number in range(1, 11):
            spool.on_end(_span(number))
    # The stop does not wait for collectors that are gone.
    assert monotonic() - began < 4
    assert len(list(tmp_path.iterdir())) == 1
    collector.answer = lambda _: _STORED
    later = SpanCounts()
    with process(tmp_path, collector, later) as spool:
        spool.on_end(_span(11))
        assert spool.force_flush()
        while later.acknowledged < 11:
            spool.force_flush()
    assert collector.stored == Counter(range(1, 12))
    assert (later.adopted_files, later.torn_bytes) == (1, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_request_loses_the_refused_spans_alone(
    tmp_path: Path, collector: Collector, counts: SpanCounts
) -> None:
    bad = {17, 400, 401}
    collector.answer = lambda request: _REFUSED if bad & set(numbers_in(request)) else _STORED
    with process(tmp_path, collector, counts) as spool:
        for number in range(1, 501):
            spool.on_end(_span(number))
        assert spool.force_flush()
    assert collector.stored == Counter(set(range(1, 501)) - bad)
    assert counts.dropped == {"refused": 3}


def test_spans_that_a_partial_success_rejects_are_counted_and_not_sent_again(
    tmp_path: Path, collector: Collector, counts: SpanCounts
) -> None:
    collector.answer = lambda _: Answer(Verdict.STORED, 2, "trace_id: the rule is …")
    with process(tmp_path, collector, counts) as spool:
        for number in range(1, 6):
            spool.on_end(_span(number))
        assert spool.force_flush()
    assert collector.requests == 1
    assert counts.dropped == {"refused": 2}


def test_halves_hold_the_same_bytes() -> None:
    request = encode_spans([_span(number, text="é", place=number) for number in range(1, 8)])
    halves = halve(request)
    assert [numbers_in(half) for half in halves] == [[1, 2, 3], [4, 5, 6, 7]]
    for number in range(1, 8):
        alone = encode_spans([_span(number, text="é", place=number)])
        # The span's bytes are the end of a request that holds nothing else.
        span = alone[alone.index(b"\x0a\x10" + bytes(15) + b"\x07") :]
        assert any(span in half for half in halves)
    assert halve(encode_spans([_span(1)])) == []


def test_a_span_that_cannot_be_encoded_or_is_too_large_costs_no_other(
    tmp_path: Path, collector: Collector, counts: SpanCounts
) -> None:
    with process(tmp_path, collector, counts) as spool:
        spool.on_end(_span(1))
        spool.on_end(_span(2, huge=2**70))
        spool.on_end(_span(3, lone="\ud800"))
        spool.on_end(_span(4, long="x" * 1024 * 1024))
        spool.on_end(_span(5))
        assert spool.force_flush()
    assert collector.stored == Counter([1, 5])
    assert counts.dropped == {"not_encodable": 2, "too_large": 1}


def test_a_full_spool_drops_the_newest_counts_them_and_says_so_once(
    tmp_path: Path, collector: Collector, counts: SpanCounts, caplog: pytest.LogCaptureFixture
) -> None:
    collector.answer = lambda _: _LATER
    with process(tmp_path, collector, counts) as spool:
        for number in range(1, 101):
            spool.on_end(_span(number, text="x" * 100_000))
        while counts.spooled + sum(counts.dropped.values()) < 100:
            assert collector.asked.wait(5)
        assert spool.backlog_bytes <= _MAX_BYTES
        collector.answer = lambda _: _STORED
        assert spool.force_flush()
        spool.on_end(_span(101))
        assert spool.force_flush()
    kept = counts.spooled - 1
    assert collector.stored == Counter([*range(1, kept + 1), 101])
    assert counts.dropped == {"spool_full": 100 - kept}
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        "the spool is full: spans are dropped"
    ]


def test_without_a_writable_directory_spans_are_sent_from_memory_and_that_is_told_once(
    tmp_path: Path,
    collector: Collector,
    counts: SpanCounts,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(span_spooling, "_REOPEN_EVERY_S", 0.0)
    # Not by permissions, which root has all of.
    directory = tmp_path / "file"
    directory.touch()
    with process(directory, collector, counts) as spool:
        for number in range(1, 11):
            spool.on_end(_span(number))
            assert spool.force_flush()
        assert not spool.is_durable
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert [record.message for record in errors] == [
            "the spool cannot be written: spans are kept in memory, and end with this process"
        ]
        directory.unlink()
        spool.on_end(_span(11))
        assert spool.force_flush()
        assert spool.is_durable
    assert collector.stored == Counter(range(1, 12))
    assert (counts.spooled, counts.dropped) == (1, {})


def test_a_disk_that_fills_up_stops_no_span(
    tmp_path: Path, collector: Collector, counts: SpanCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with process(tmp_path, collector, counts) as spool:
        spool.on_end(_span(1))
        assert spool.force_flush()

        def no_space(*_: object) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as full:
            full.setattr("os.pwrite", no_space)
            spool.on_end(_span(2))
            assert spool.force_flush()
            assert not spool.is_durable
        spool.on_end(_span(3))
        assert spool.force_flush()
        assert spool.is_durable
    assert collector.stored == Counter([1, 2, 3])
    assert (counts.spooled, counts.dropped) == (2, {})


def test_what_ends_after_the_stop_is_counted(tmp_path: Path, collector: Collector, counts: SpanCounts) -> None:
    with process(tmp_path, collector, counts) as spool:
        pass
    spool.on_end(_span(1))
    assert counts.dropped == {"stopped": 1}


def test_ordinary_spans_go_to_the_batch_and_all_others_to_the_spool() -> None:
    kept, batched = InMemorySpanExporter(), InMemorySpanExporter()
    routing = SpanRouting(SimpleSpanProcessor(kept), SimpleSpanProcessor(batched))
    routing.on_end(_span(1))
    routing.on_end(_span(2, ORDINARY))
    assert [span.context.span_id for span in kept.get_finished_spans()] == [1]
    assert [span.context.span_id for span in batched.get_finished_spans()] == [2]
