"""Counters, and spans: a bounded few under each transfer's own trace, and traces of their own for shared work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.core.canonical import to_hex
from services.core.errors import WalletError
from services.runtime import attributes
from services.runtime import metric_names as names
from services.runtime.metrics import counter
from services.runtime.telemetry import stored_link
from services.runtime.transfer_span import TransferSpan, TransferSpans, stored_parent

SUBMISSION = "broadcaster.submission"  # one a transfer and attempt
REQUEST = "broadcaster.request"  # one a node that is asked, under the submission
INCLUSION = "broadcaster.inclusion"  # one a status that is entered
REVOCATION = "broadcaster.revocation"
BATCH = "broadcaster.batch"  # a round that serves several transfers, in a trace of its own
WATCH = "broadcaster.watch"  # a look at the chain that found something, in a trace of its own
_MAX_LINKS = 128

_SCOPE = "goldenlink.broadcaster"

_tracer = trace.get_tracer(_SCOPE)

refusals = counter(names.WALLET_NODE_REFUSALS)
falsehoods = counter(names.WALLET_NODE_FALSEHOODS)
stalls = counter(names.WALLET_TRANSFER_STALLS)
nonces_spent = counter(names.WALLET_NONCE_LOSSES)
chains_broken = counter(names.WALLET_CHAIN_BREAKS)
chains_behind = counter(names.WALLET_CHAIN_LAGS)
takeovers = counter(names.WALLET_LEASE_TAKEOVERS)
lease_losses = counter(names.WALLET_LEASE_LOSSES)


class ChainSpans:
    """Starts the spans of one round or look at a chain."""

    def __init__(self, chain_id: str) -> None:
        self._chain_id = chain_id
        self._spans = TransferSpans(trace.get_tracer(_SCOPE))

    def start(self, name: str, traceparent: str, tx_hash: bytes) -> TransferSpan:
        """A span in the transfer's trace; the caller ends it."""
        shown = {attributes.WALLET_CHAIN_ID: self._chain_id, attributes.WALLET_TX_HASH: to_hex(tx_hash)}
        return self._spans.start(name, stored_parent(traceparent), shown)


def start_request(submission: TransferSpan, node: str, attempt: int) -> TransferSpan:
    """A span below the submission's for one request to one node."""
    return submission.child(
        REQUEST,
        SpanKind.CLIENT,
        {
            attributes.RPC_SYSTEM: "jsonrpc",
            attributes.RPC_METHOD: "eth_sendRawTransaction",
            attributes.WALLET_NODE_NAME: node,
            attributes.WALLET_ATTEMPT: attempt,
        },
    )


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
            span.set_attribute(attributes.ERROR_TYPE, error.reason.name)
            span.set_status(Status(StatusCode.ERROR, error.reason.name))
            raise


@contextmanager
def round_span(spans: Sequence[TransferSpan], traceparents: Sequence[str]) -> Iterator[None]:
    """What is current during a round: the one transfer's span, or a trace of its own for several."""
    if len(spans) == 1:
        with spans[0].as_current():
            yield
    else:
        with shared_span(BATCH, traceparents):
            yield
