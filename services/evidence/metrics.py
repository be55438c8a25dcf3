"""What evidence measures."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from opentelemetry import trace

from services.core.errors import WalletError
from services.runtime import attributes as names
from services.runtime.metric_names import (
    WALLET_EVIDENCE_APPEND_DURATION,
    WALLET_EVIDENCE_REFUSALS,
    WALLET_LEASE_LOSSES,
    WALLET_LEASE_TAKEOVERS,
)
from services.runtime.metrics import counter, histogram

takeovers = counter(WALLET_LEASE_TAKEOVERS)
losses = counter(WALLET_LEASE_LOSSES)

_refusals = counter(WALLET_EVIDENCE_REFUSALS)
_duration = histogram(WALLET_EVIDENCE_APPEND_DURATION)
_committed = _duration.series()


def count_append(began: float, result: Sequence[object] | WalletError) -> None:
    """Of one call that waited since `began` (perf_counter), within it: its time, and the entries that were refused."""
    series = _committed
    if isinstance(result, WalletError):
        series = _duration.series({names.ERROR_TYPE: result.reason.name})
    else:
        for outcome in result:
            if isinstance(outcome, WalletError):
                _refusals.add(1, {names.ERROR_TYPE: outcome.reason.name})
    series.record(perf_counter() - began, trace.get_current_span())
