"""Where ended spans go: those of signature operations to the spool, all others to the SDK's batch processor."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from services.runtime.span_flags import OrdinaryFlags


class SpanRouting(SpanProcessor):
    def __init__(self, spool: SpanProcessor, batch: SpanProcessor) -> None:
        self._spool = spool
        self._batch = batch

    def on_end(self, span: ReadableSpan) -> None:
        ordinary = type(span.context.trace_flags) is OrdinaryFlags
        (self._batch if ordinary else self._spool).on_end(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._spool.force_flush(timeout_millis) and self._batch.force_flush(timeout_millis)

    def shutdown(self) -> None:
        # The spool first: it has what must not be lost, and the batch may take long.
        self._spool.shutdown()
        self._batch.shutdown()
