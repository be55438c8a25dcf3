"""The exporter of ordinary spans, for the SDK's batch processor: retries for a while, then counts the batch as lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from time import monotonic

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter as SdkSpanExporter
from opentelemetry.sdk.trace.export import SpanExportResult

from services.runtime import span_counts
from services.runtime.span_counts import SpanCounts
from services.runtime.span_encoding import encode_spans
from services.runtime.span_sender import SpanSender, Verdict, pauses

_log = logging.getLogger(__name__)

_RETRY_S = 10.0


class SpanExporter(SdkSpanExporter):
    def __init__(self, sender: SpanSender, counts: SpanCounts) -> None:
        self._sender = sender
        self._counts = counts
        self._stopping = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Blocks for 20 s at most: attempts begin for ten, and the last may take as long."""
        request = encode_spans(spans)
        end = monotonic() + _RETRY_S
        for pause_s in pauses():
            answer = self._sender.send(request)
            if answer.verdict is Verdict.STORED:
                self._counts.acknowledge(len(spans) - answer.rejected)
                if answer.rejected:
                    self._counts.drop(span_counts.REFUSED, answer.rejected)
                return SpanExportResult.SUCCESS
            wait_s = max(pause_s, answer.pause_s)
            if answer.verdict is Verdict.REFUSED or monotonic() + wait_s > end or self._stopping.wait(wait_s):
                self._counts.drop(span_counts.EXPORT_FAILED, len(spans))
                _log.warning("a batch of ordinary spans is lost", extra={"spans": len(spans), "detail": answer.detail})
                return SpanExportResult.FAILURE
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Try no more; the channel is its maker's to close."""
        self._stopping.set()
