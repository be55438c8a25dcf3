"""Spans of the broadcaster: a bounded few under each transfer's own trace, and traces of their own for shared work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.core.canonical import to_hex
from services.core.errors import WalletError
from services.runtime import attributes
from services.runtime.telemetry import stored_context, stored_link

SUBMISSION = "broadcaster.submission"  # one a transfer and attempt
REQUEST = "broadcaster.request"  # one a node that is asked, under the submission
INCLUSION = "broadcaster.inclusion"  # one a status that is entered
REVOCATION = "broadcaster.revocation"
BATCH = "broadcaster.batch"  # a round that serves several transfers, in a trace of its own
WATCH = "broadcaster.watch"  # a look at the chain that found something, in a trace of its own
_MAX_LINKS = 128

_tracer = trace.get_tracer("goldenlink.broadcaster")


def start_transfer_span(name: str, traceparent: str, chain_id: str, tx_hash: bytes) -> Span:
    """A span in the transfer's trace; the caller ends it."""
    return _tracer.start_span(
        name,
        context=stored_context(traceparent),
        attributes={attributes.WALLET_CHAIN_ID: chain_id, attributes.WALLET_TX_HASH: to_hex(tx_hash)},
        record_exception=False,
        set_status_on_exception=False,
    )


def start_request_span(parent: Span, node: str, attempt: int) -> Span:
    return _tracer.start_span(
        REQUEST,
        context=trace.set_span_in_context(parent, Context()),
        kind=SpanKind.CLIENT,
        attributes={
            attributes.RPC_SYSTEM: "jsonrpc",
            attributes.RPC_METHOD: "eth_sendRawTransaction",
            attributes.WALLET_NODE_NAME: node,
            attributes.WALLET_ATTEMPT: attempt,
        },
        record_exception=False,
        set_status_on_exception=False,
    )


def entry_ids(span: Span, traceparent: str) -> tuple[str, str]:
    """(trace_id, span_id) in hex for an entry that `span` writes; the stored ones where tracing is switched off."""
    trace_id, stored_span_id = traceparent[3:35], traceparent[36:52]
    context = span.get_span_context()
    if span.is_recording() and f"{context.trace_id:032x}" == trace_id:
        return trace_id, f"{context.span_id:016x}"
    return trace_id, stored_span_id


def mark_failed(span: Span, error_type: str) -> None:
    span.set_attribute(attributes.ERROR_TYPE, error_type)
    span.set_status(Status(StatusCode.ERROR, error_type))


@contextmanager
def shared_span(name: str, traceparents: Sequence[str]) -> Iterator[Span]:
    """A trace of its own for work on several transfers, linked to at most 128 of them."""
    with _tracer.start_as_current_span(
        name,
        context=Context(),
        links=[stored_link(traceparent) for traceparent in traceparents[:_MAX_LINKS]],
        attributes={attributes.WALLET_BATCH_SIZE: len(traceparents)},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except WalletError as error:
            mark_failed(span, error.reason.name)
            raise


@contextmanager
def round_span(spans: Sequence[Span], traceparents: Sequence[str]) -> Iterator[None]:
    """What is current during a round: the one transfer's span, or a trace of its own for several."""
    if len(spans) == 1:
        with trace.use_span(spans[0], end_on_exit=False, record_exception=False, set_status_on_exception=False):
            yield
    else:
        with shared_span(BATCH, traceparents):
            yield
