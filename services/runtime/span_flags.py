"""Which sampled spans must not be lost: those of signature operations, told from the rest by their trace flags.

W3C's flag 01 says no more than "sampled". A span that is sampled only because an operator's strategy, or a stranger's
flag, asked for it carries flags of a type of their own, which its children inherit; on calls to peers `tracestate`
says so. Whatever comes without that mark is kept as a signature operation's: forgetting it costs disk, never a span.
"""

from __future__ import annotations

from typing import Final

from opentelemetry.trace import SpanContext, TraceFlags


class OrdinaryFlags(TraceFlags):
    """Flags of a span that belongs to no signature operation."""


SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
ORDINARY: Final = OrdinaryFlags(TraceFlags.SAMPLED)

# W3C Trace Context §3.3: the value is the vendor's own.
TRACESTATE_KEY: Final = "tracestate"
ORDINARY_STATE: Final = "goldenlink=ordinary"


def is_ordinary(context: SpanContext) -> bool:
    return type(context.trace_flags) is OrdinaryFlags


def as_ordinary(context: SpanContext) -> SpanContext:
    """The same place in the same trace, sampled or not as before; what is below it is ordinary."""
    return SpanContext(
        context.trace_id, context.span_id, context.is_remote, OrdinaryFlags(context.trace_flags), context.trace_state
    )
