"""Spans of RPCs, as OpenTelemetry's RPC conventions name them.

Our own, because the stock instrumentation records a cancelled call as OK, leaves an unhandled exception with code 0,
and never ends the client span of a cancelled call (docs/adr/0002-own-rpc-instrumentation.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.core.errors import Reason, WalletError
from services.runtime import attributes
from services.runtime.span_flags import ORDINARY_STATE, TRACESTATE_KEY, as_ordinary, is_ordinary
from services.runtime.telemetry import format_traceparent, parse_traceparent

_TRACEPARENT_KEY = "traceparent"
_tracer = trace.get_tracer("goldenlink.rpc")

# Machinery, not work: traced exporters would feed themselves, and looking at traces would make traces.
UNTRACED_SERVICES = frozenset(
    {
        "opentelemetry.proto.collector.trace.v1.TraceService",
        "opentelemetry.proto.collector.logs.v1.LogsService",
        "jaeger.storage.v2.TraceReader",
        "jaeger.storage.v2.DependencyReader",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
)


def split_method(method: str) -> tuple[str, str]:
    """("wallet.v1.Signer", "SignTransaction") of "/wallet.v1.Signer/SignTransaction"."""
    service, _, name = method.removeprefix("/").partition("/")
    return service, name


def incoming_context(metadata: Iterable[tuple[str, str | bytes]]) -> Context:
    remote, ordinary = None, False
    for key, value in metadata:
        if key == _TRACEPARENT_KEY and isinstance(value, str):
            remote = remote or parse_traceparent(value)
        elif key == TRACESTATE_KEY:
            ordinary = value == ORDINARY_STATE
    if remote is None:
        return Context()
    return trace.set_span_in_context(trace.NonRecordingSpan(as_ordinary(remote) if ordinary else remote), Context())


def outgoing_metadata(span: Span) -> tuple[tuple[str, str], ...]:
    context = span.get_span_context()
    if not context.is_valid:
        return ()
    traceparent = (_TRACEPARENT_KEY, format_traceparent(context))
    return (traceparent, (TRACESTATE_KEY, ORDINARY_STATE)) if is_ordinary(context) else (traceparent,)


def start_span(method: str, kind: SpanKind, context: Context | None = None) -> Span:
    name, facts = _description(method)
    return _tracer.start_span(name, context, kind, facts)


@cache
def _description(method: str) -> tuple[str, Mapping[str, str]]:
    """Name and attributes of every span of a method that this process serves or calls."""
    service, name = split_method(method)
    return f"{service}/{name}", {
        attributes.RPC_SYSTEM: "grpc",
        attributes.RPC_SERVICE: service,
        attributes.RPC_METHOD: name,
    }


def record_ok(span: Span) -> None:
    span.set_attribute(attributes.RPC_GRPC_STATUS_CODE, 0)


def record_error(span: Span, error: WalletError) -> None:
    """Put the code and the reason on the span: the reason's name is no secret, its message stays off."""
    span.set_attribute(attributes.RPC_GRPC_STATUS_CODE, int(error.reason.code))
    span.set_attribute(attributes.ERROR_TYPE, error.reason.name)
    span.set_status(Status(StatusCode.ERROR, error.reason.name))


def record_cancelled(span: Span) -> None:
    record_error(span, WalletError(Reason.CANCELLED, Reason.CANCELLED.meaning))
