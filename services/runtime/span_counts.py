"""What became of the spans of this process, counted: every one that is not stored is in one of these numbers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Final

from services.runtime import attributes
from services.runtime.metric_names import (
    WALLET_SPANS_ACKNOWLEDGED,
    WALLET_SPANS_DROPPED,
    WALLET_SPANS_SPOOLED,
    WALLET_SPOOL_ADOPTIONS,
    WALLET_SPOOL_TORN,
)
from services.runtime.metrics import counter

# Why spans are lost. That the queue of ordinary spans is full, the SDK's own metrics tell.
QUEUE_FULL: Final = "queue_full"  # they ended faster than they could be written
STOPPED: Final = "stopped"  # they ended after the process had begun to end
SPOOL_FULL: Final = "spool_full"
MEMORY_FULL: Final = "memory_full"  # no spool can be written, and what stands in for it is full
EXPORT_FAILED: Final = "export_failed"  # ordinary spans, after the retries of one batch
NOT_ENCODABLE: Final = "not_encodable"
TOO_LARGE: Final = "too_large"
REFUSED: Final = "refused"  # by the collector, for what they are

_spooled = counter(WALLET_SPANS_SPOOLED)
_acknowledged = counter(WALLET_SPANS_ACKNOWLEDGED)
_dropped = counter(WALLET_SPANS_DROPPED)
_adoptions = counter(WALLET_SPOOL_ADOPTIONS)
_torn = counter(WALLET_SPOOL_TORN)


class SpanCounts:
    """Since the start of the process, for its own threads to read; the metrics of the same names tell others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dropped: Counter[str] = Counter()
        self.spooled = 0
        self.acknowledged = 0
        self.adopted_files = 0
        self.torn_bytes = 0

    @property
    def dropped(self) -> Mapping[str, int]:
        """By cause."""
        with self._lock:
            return dict(self._dropped)

    def drop(self, cause: str, spans: int = 1) -> None:
        # Spans end in any thread.
        with self._lock:
            self._dropped[cause] += spans
        _dropped.add(spans, {attributes.ERROR_TYPE: cause})

    def spool(self, spans: int) -> None:
        self.spooled += spans
        _spooled.add(spans)

    def acknowledge(self, spans: int) -> None:
        self.acknowledged += spans
        _acknowledged.add(spans)

    def adopt(self) -> None:
        self.adopted_files += 1
        _adoptions.add(1)

    def tear(self, size_bytes: int) -> None:
        self.torn_bytes += size_bytes
        _torn.add(size_bytes)
