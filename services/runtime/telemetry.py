"""OpenTelemetry in a process: the tracer provider, and W3C context that outlives a request."""

from __future__ import annotations

import os
import re
import secrets

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.environment_variables import (
    OTEL_BSP_SCHEDULE_DELAY,
    OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanContext, TraceFlags

from services.runtime.lean_tracer import LeanTracerProvider
from services.runtime.metric_names import WALLET_SPANS_QUEUE_DEPTH, WALLET_SPOOL_DURABLE, WALLET_SPOOL_SIZE
from services.runtime.metrics import observe
from services.runtime.sampling import open_strategy
from services.runtime.settings import ServiceSettings
from services.runtime.signature_floor import SignatureFloor
from services.runtime.span_counts import SpanCounts
from services.runtime.span_exporter import SpanExporter
from services.runtime.span_routing import SpanRouting
from services.runtime.span_sender import SpanSender
from services.runtime.span_spooling import SpoolingProcessor, SpoolPlace

# W3C Trace Context level 1 §3.2.2; version ff is invalid, later versions may carry more fields.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
# Half a megabyte: receivers of OTLP take 4 MiB by default.
_MAX_BATCH_SPANS = 1_024


def parse_traceparent(value: str) -> SpanContext | None:
    """The remote span context of a `traceparent` header; None when it is malformed (W3C: then start a new trace)."""
    match = _TRACEPARENT.fullmatch(value.strip(" \t")) if len(value) <= 512 else None
    if match is None:
        return None
    version, trace_hex, span_hex, flags, rest = match.groups()
    trace_id, span_id = int(trace_hex, 16), int(span_hex, 16)
    if version == "ff" or (version == "00" and rest) or not trace_id or not span_id:
        return None
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def format_traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"


def new_traceparent() -> str:
    """A fresh sampled context, for a transfer whose trace has no span yet (also when tracing is switched off)."""
    return f"00-{_nonzero_hex(16)}-{_nonzero_hex(8)}-01"


def stored_context(traceparent: str) -> Context:
    """The context of work resumed from a row: a stored traceparent is always sampled.

    Raises:
        ValueError: the stored text is not a traceparent, which only a damaged row can be.
    """
    parsed = parse_traceparent(traceparent)
    if parsed is None:
        raise ValueError("stored traceparent is malformed")
    sampled = SpanContext(parsed.trace_id, parsed.span_id, is_remote=True, trace_flags=_SAMPLED)
    return trace.set_span_in_context(trace.NonRecordingSpan(sampled), Context())


def stored_link(traceparent: str) -> Link:
    """A span link to the trace of a row."""
    return Link(trace.get_current_span(stored_context(traceparent)).get_span_context())


def current_ids(traceparent: str) -> tuple[str, str]:
    """(trace_id, span_id) in hex for an entry of the link that `traceparent` belongs to.

    The trace id is the link's; the span id is the current span's when it is in that trace, else the stored one.
    """
    trace_id, stored_span_id = traceparent[3:35], traceparent[36:52]
    context = trace.get_current_span().get_span_context()
    if context.is_valid and f"{context.trace_id:032x}" == trace_id:
        return trace_id, f"{context.span_id:016x}"
    return trace_id, stored_span_id


def start_telemetry(service: str, settings: ServiceSettings, signature_roots: frozenset[str] = frozenset()) -> None:
    """Install the global tracer provider; spans go to `OTEL_EXPORTER_OTLP_ENDPOINT` over mTLS, by way of a spool where
    they belong to a signature operation.

    Without an endpoint, or with OTEL_SDK_DISABLED=true, spans are not recorded and contexts still propagate.

    Raises:
        ValueError: OTEL_TRACES_SAMPLER or its argument is wrong.
    """
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    if not endpoint or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    # The batch processor tells of its drops only then.
    os.environ.setdefault(OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED, "true")
    sender, counts = SpanSender(endpoint, settings), SpanCounts()
    place = SpoolPlace(settings.spool_dir, service, settings.spool_max_bytes, settings.spool_sync_s)
    schedule_s = float(os.environ.get(OTEL_BSP_SCHEDULE_DELAY, "5000")) / 1000
    spool = SpoolingProcessor(sender.send, place, counts, schedule_s)
    observe(WALLET_SPANS_QUEUE_DEPTH, lambda: [(spool.queued, None)])
    observe(WALLET_SPOOL_SIZE, lambda: [(spool.backlog_bytes, None)])
    observe(WALLET_SPOOL_DURABLE, lambda: [(int(spool.is_durable), None)])
    batch = BatchSpanProcessor(
        SpanExporter(sender, counts), max_queue_size=16_384, max_export_batch_size=_MAX_BATCH_SPANS
    )
    trace.set_tracer_provider(
        LeanTracerProvider(
            SignatureFloor(open_strategy(service, settings), signature_roots),
            Resource.create({"service.name": service}),
            SpanRouting(spool, batch),
        )
    )


def stop_telemetry() -> None:
    """Flush what is queued; called once, after the last request."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, LeanTracerProvider):
        provider.shutdown()


def _nonzero_hex(size: int) -> str:
    while True:
        value = secrets.token_bytes(size)
        if any(value):
            return value.hex()
