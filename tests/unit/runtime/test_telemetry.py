"""W3C context."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from services.runtime.telemetry import (
    current_ids,
    format_traceparent,
    new_traceparent,
    parse_traceparent,
    stored_context,
    stored_link,
)

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
# The example of W3C Trace Context §3.2.
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
NONZERO_TRACE_IDS = st.integers(1, 2**128 - 1)
NONZERO_SPAN_IDS = st.integers(1, 2**64 - 1)


@given(NONZERO_TRACE_IDS, NONZERO_SPAN_IDS, st.integers(0, 255))
def test_every_valid_traceparent_is_read(trace_id: int, span_id: int, flags: int) -> None:
    parsed = parse_traceparent(f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}")
    assert parsed is not None
    assert (parsed.trace_id, parsed.span_id, parsed.is_remote) == (trace_id, span_id, True)
    assert parsed.trace_flags.sampled == bool(flags & 1)
    assert format_traceparent(parsed) == f"00-{trace_id:032x}-{span_id:016x}-{flags & 1:02x}"


@given(st.one_of(st.text(), st.text("0123456789abcdefABCDEF- \t\n\0٠", max_size=80)))
@example(f"00-{'0' * 32}-{SPAN_ID}-01")
@example(f"00-{TRACE_ID}-{'0' * 16}-01")
@example(f"ff-{TRACE_ID}-{SPAN_ID}-01")
@example(f"00-{TRACE_ID.upper()}-{SPAN_ID}-01")
@example(f"00-{TRACE_ID}-{SPAN_ID}-01-extra")
@example(f"00-{TRACE_ID}-{SPAN_ID}-01\n")
@example(f"00-{TRACE_ID}-{SPAN_ID}-1")
@example(f"00-{'٠' * 32}-{SPAN_ID}-01")
@example(f"01-{TRACE_ID}-{SPAN_ID}-01-" + "x" * 600)
def test_hostile_text_is_no_context(value: str) -> None:
    # Random text is never a traceparent by chance: 48 hex digits in the right places are not drawn.
    assert parse_traceparent(value) is None


@given(st.text(max_size=60), st.integers(0, 60))
def test_a_damaged_traceparent_is_refused_or_still_valid(noise: str, position: int) -> None:
    parsed = parse_traceparent(TRACEPARENT[:position] + noise + TRACEPARENT[position:])
    if parsed is not None:
        assert parsed.is_valid
        assert parse_traceparent(format_traceparent(parsed)) is not None


def test_a_later_version_with_more_fields_is_read() -> None:
    # W3C Trace Context §3.2.4: versions above 00 are parsed as 00, what follows is ignored.
    parsed = parse_traceparent(f"01-{TRACE_ID}-{SPAN_ID}-01-what-comes")
    assert parsed is not None
    assert format_traceparent(parsed) == TRACEPARENT


def test_new_traceparents_are_sampled_and_differ() -> None:
    made = {new_traceparent() for _ in range(100)}
    assert len({value[3:35] for value in made}) == 100
    for value in made:
        parsed = parse_traceparent(value)
        assert parsed is not None
        assert parsed.trace_flags.sampled


def test_stored_context_is_sampled_whatever_was_stored() -> None:
    context = trace.get_current_span(stored_context(f"00-{TRACE_ID}-{SPAN_ID}-00")).get_span_context()
    assert format_traceparent(context) == TRACEPARENT
    assert format_traceparent(stored_link(TRACEPARENT).context) == TRACEPARENT


def test_damaged_stored_context_is_an_error() -> None:
    with pytest.raises(ValueError, match="malformed"):
        stored_context("00-zz")


def test_stored_context_forgets_the_current_span() -> None:
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("other"):
        resumed = tracer.start_span("resumed", context=stored_context(TRACEPARENT))
    assert resumed.get_span_context().trace_id == int(TRACE_ID, 16)


def test_current_ids_are_the_links_trace_and_the_current_span_within_it() -> None:
    assert current_ids(TRACEPARENT) == (TRACE_ID, SPAN_ID)
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("step", context=stored_context(TRACEPARENT)) as span:
        assert current_ids(TRACEPARENT) == (TRACE_ID, f"{span.get_span_context().span_id:016x}")
    # The watcher's own trace is not the link's: the stored span is named.
    with tracer.start_as_current_span("watcher"):
        assert current_ids(TRACEPARENT) == (TRACE_ID, SPAN_ID)
