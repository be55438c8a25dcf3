"""Ordinary spans: tried for a while, then counted as lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags

from services.runtime import span_exporter
from services.runtime.span_counts import SpanCounts
from services.runtime.span_encoding import encode_spans
from services.runtime.span_exporter import SpanExporter
from services.runtime.span_sender import Answer, SpanSender, Verdict

_SPAN = ReadableSpan(
    "step", SpanContext(1, 2, False, TraceFlags(1)), resource=Resource({"service.name": "x"}), start_time=1, end_time=2
)


class Sender:
    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.sent: list[bytes] = []

    def send(self, request: bytes) -> Answer:
        self.sent.append(request)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


Exported = Callable[[Sender], tuple[SpanExportResult, SpanCounts]]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Exported:
    monkeypatch.setattr(span_exporter, "_RETRY_S", 0.5)

    def export(sender: Sender) -> tuple[SpanExportResult, SpanCounts]:
        counts = SpanCounts()
        return SpanExporter(cast(SpanSender, sender), counts).export([_SPAN]), counts

    return export


def test_a_batch_is_sent_again_until_it_is_stored(exported: Exported) -> None:
    sender = Sender(Answer(Verdict.LATER), Answer(Verdict.STORED))
    result, counts = exported(sender)
    assert result is SpanExportResult.SUCCESS
    assert sender.sent == [encode_spans([_SPAN])] * 2
    assert (counts.acknowledged, counts.dropped) == (1, {})


@pytest.mark.parametrize("answer", [Answer(Verdict.LATER), Answer(Verdict.REFUSED)])
def test_a_batch_that_is_given_up_is_counted(exported: Exported, answer: Answer) -> None:
    result, counts = exported(Sender(answer))
    assert result is SpanExportResult.FAILURE
    assert (counts.acknowledged, counts.dropped) == (0, {"export_failed": 1})


def test_what_a_partial_success_rejects_is_counted(exported: Exported) -> None:
    result, counts = exported(Sender(Answer(Verdict.STORED, 1, "malformed")))
    assert result is SpanExportResult.SUCCESS
    assert (counts.acknowledged, counts.dropped) == (0, {"refused": 1})
