"""Spans of the broadcaster: a bounded few under each transfer's own trace, and traces of their own for shared work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from time import time_ns
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from services.core.canonical import to_hex
from services.core.errors import WalletError
from services.runtime import attributes
from services.runtime.telemetry import stored_link

SUBMISSION = "broadcaster.submission"  # one a transfer and attempt
REQUEST = "broadcaster.request"  # one a node that is asked, under the submission
INCLUSION = "broadcaster.inclusion"  # one a status that is entered
REVOCATION = "broadcaster.revocation"
BATCH = "broadcaster.batch"  # a round that serves several transfers, in a trace of its own
WATCH = "broadcaster.watch"  # a look at the chain that found something, in a trace of its own
_MAX_LINKS = 128

_SCOPE = "goldenlink.broadcaster"
_INSTRUMENTATION = InstrumentationScope(_SCOPE, "")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)

_tracer = trace.get_tracer(_SCOPE)


class TransferSpan:
    """A span in a transfer's own trace, handed on whole when it ends.

    Without locks and limits, it costs a tenth of what the SDK's does: one task writes it, and a round has hundreds.
    """

    __slots__ = ("_attributes", "_context", "_kind", "_name", "_parent", "_sdk", "_start_ns", "_status")

    def __init__(
        self, sdk: SdkTracer | None, name: str, kind: SpanKind, parent: SpanContext, attributes: dict[str, Any]
    ) -> None:
        self._sdk = sdk
        self._name = name
        self._kind = kind
        self._parent = parent
        self._context = parent
        self._attributes = attributes
        self._status = _UNSET
        self._start_ns = time_ns()
        if sdk is not None:
            self._context = SpanContext(parent.trace_id, sdk.id_generator.generate_span_id(), False, _SAMPLED)

    @property
    def entry_ids(self) -> tuple[str, str]:
        """(trace_id, span_id) in hex for an entry that this span writes; the stored ones without tracing."""
        return f"{self._context.trace_id:032x}", f"{self._context.span_id:016x}"

    def start_request(self, node: str, attempt: int) -> TransferSpan:
        """A span below this one for one request to one node."""
        return TransferSpan(
            self._sdk,
            REQUEST,
            SpanKind.CLIENT,
            self._context,
            {
                attributes.RPC_SYSTEM: "jsonrpc",
                attributes.RPC_METHOD: "eth_sendRawTransaction",
                attributes.WALLET_NODE_NAME: node,
                attributes.WALLET_ATTEMPT: attempt,
            },
        )

    def set_attribute(self, name: str, value: str | int) -> None:
        self._attributes[name] = value

    def mark_failed(self, error_type: str) -> None:
        self._attributes[attributes.ERROR_TYPE] = error_type
        self._status = Status(StatusCode.ERROR, error_type)

    def end(self) -> None:
        if self._sdk is not None:
            self._sdk.span_processor.on_end(
                ReadableSpan(
                    self._name,
                    self._context,
                    self._parent,
                    self._sdk.resource,
                    self._attributes,
                    kind=self._kind,
                    status=self._status,
                    start_time=self._start_ns,
                    end_time=time_ns(),
                    instrumentation_scope=_INSTRUMENTATION,
                )
            )

    def as_current(self) -> AbstractContextManager[Span]:
        return trace.use_span(NonRecordingSpan(self._context))


class TransferSpans:
    """The spans of one round or look at a chain."""

    def __init__(self, chain_id: str) -> None:
        self._chain_id = chain_id
        tracer = trace.get_tracer(_SCOPE)
        self._sdk = tracer if isinstance(tracer, SdkTracer) else None

    def start(self, name: str, traceparent: str, tx_hash: bytes) -> TransferSpan:
        """A span in the transfer's trace; the caller ends it. A stored traceparent is always sampled."""
        parent = SpanContext(int(traceparent[3:35], 16), int(traceparent[36:52], 16), True, _SAMPLED)
        shown = {attributes.WALLET_CHAIN_ID: self._chain_id, attributes.WALLET_TX_HASH: to_hex(tx_hash)}
        return TransferSpan(self._sdk, name, SpanKind.INTERNAL, parent, shown)


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
