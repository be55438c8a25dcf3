"""Spans of signatures. Each is handed on whole when it ends, at a tenth of what the SDK's own spans cost: those can be
changed by many threads until then, and a batch has a hundred."""

from __future__ import annotations

from collections.abc import Mapping
from time import time_ns
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, Status, TraceFlags, Tracer
from opentelemetry.util.types import AttributeValue

SCOPE = "goldenlink.signer"
SIGNATURE_SPAN = "signer.signature"
TOKEN_SPAN = "token.sign"  # noqa: S105 - a span's name

# Signatures are always sampled, whatever the caller's flag says.
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope(SCOPE, "")


class SignatureSpan(NamedTuple):
    """A span that has begun."""

    context: SpanContext
    parent: SpanContext
    links: tuple[Link, ...]
    start_ns: int


class SignatureSpans:
    """The spans of one call, made within it."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        # Without the SDK nothing is recorded, and the ids that are handed on are the caller's.
        self._sdk = tracer if isinstance(tracer, SdkTracer) else None
        self._here = trace.get_current_span().get_span_context()
        self._link_here = (Link(self._here),) if self._here.is_valid else ()

    @property
    def recording(self) -> bool:
        return self._sdk is not None

    def start(self, transfer: SpanContext) -> SignatureSpan:
        """A span in the transfer's trace: below the current span when that is in it, else linked to it."""
        trace_id = transfer.trace_id
        inside = self._here.is_valid and self._here.trace_id == trace_id
        parent = self._here if inside else SpanContext(trace_id, transfer.span_id, True, _SAMPLED)
        context = parent
        if self._sdk is not None:
            context = SpanContext(trace_id, self._sdk.id_generator.generate_span_id(), False, _SAMPLED)
        return SignatureSpan(context, parent, () if inside else self._link_here, time_ns())

    def end(self, span: SignatureSpan, attributes: Mapping[str, AttributeValue], status: Status) -> None:
        if self._sdk is not None:
            self._sdk.span_processor.on_end(
                ReadableSpan(
                    SIGNATURE_SPAN,
                    span.context,
                    span.parent,
                    self._sdk.resource,
                    attributes,
                    links=span.links,
                    status=status,
                    start_time=span.start_ns,
                    end_time=time_ns(),
                    instrumentation_scope=_SCOPE,
                )
            )

    def start_token(self, parent: SignatureSpan | None, attributes: Mapping[str, AttributeValue]) -> Span:
        """A span of one token call: below the signature's span, or for a batch below the current span."""
        context = trace.set_span_in_context(NonRecordingSpan(parent.context)) if parent is not None else None
        return self._tracer.start_span(TOKEN_SPAN, context, attributes=attributes)
