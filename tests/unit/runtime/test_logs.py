"""Log lines: one JSON object each, with the ids of the current span."""

from __future__ import annotations

import json
import logging
import sys

from opentelemetry.sdk.trace import TracerProvider

from services.runtime.logs import JsonFormatter


def line_of(message: str, *args: object, **extra: object) -> dict[str, object]:
    record = logging.makeLogRecord({"msg": message, "args": args, "levelname": "INFO", "name": "test", **extra})
    text = JsonFormatter("signer").format(record)
    assert "\n" not in text
    line: dict[str, object] = json.loads(text)
    return line


def test_line_carries_trace_id_and_span_id_of_the_current_span() -> None:
    with TracerProvider().get_tracer("test").start_as_current_span("step") as span:
        line = line_of("signed %d", 3, transfer_id="t-1")
    context = span.get_span_context()
    assert line["trace_id"] == f"{context.trace_id:032x}"
    assert line["span_id"] == f"{context.span_id:016x}"
    assert (line["service"], line["message"], line["transfer_id"]) == ("signer", "signed 3", "t-1")


def test_line_outside_a_span_names_no_trace() -> None:
    line = line_of("two\nlines \N{SNOWMAN}")
    assert "trace_id" not in line
    assert line["message"] == "two\nlines \N{SNOWMAN}"


def test_exception_stays_within_its_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        line = line_of("failed", exc_info=sys.exc_info())
    assert "ValueError: broken" in str(line["exception"])


def test_an_extra_field_cannot_replace_our_own() -> None:
    assert line_of("real", level="FORGED", service="forged")["service"] == "signer"
