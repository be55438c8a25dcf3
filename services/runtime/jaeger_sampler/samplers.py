"""A strategy as a sampler of the SDK. What counts traces is safe to use from several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import monotonic

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

from .strategy import PerOperation, Probabilistic, RateLimiting, Strategy

# Operations that get a lower bound of their own. Names that somebody else chooses are without number; those that come
# later are sampled by the rate alone, as in Jaeger's own samplers.
_MOST_OPERATIONS = 2_000

Clock = Callable[[], float]


def sampler_of(strategy: Strategy, clock: Clock = monotonic) -> Sampler:
    """`clock` answers seconds."""
    match strategy:
        case Probabilistic(sampling_rate):
            return TraceIdRatioBased(sampling_rate)
        case RateLimiting(max_traces_per_second):
            return RateLimitingSampler(max_traces_per_second, clock)
        case PerOperation():
            return PerOperationSampler(strategy, clock)


class TraceBudget:
    """A leaky bucket: `per_second` traces, saved up for at most a second, and one trace where that is less than one."""

    def __init__(self, per_second: float, clock: Clock) -> None:
        self._per_second = per_second
        self._most = max(per_second, 1.0) if per_second else 0.0
        self._balance = self._most
        self._clock = clock
        self._seen_at = clock()
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            now = self._clock()
            self._balance = min(self._most, self._balance + (now - self._seen_at) * self._per_second)
            self._seen_at = now
            if self._balance < 1.0:
                return False
            self._balance -= 1.0
            return True


class RateLimitingSampler(Sampler):
    def __init__(self, max_traces_per_second: float, clock: Clock) -> None:
        self._max_traces_per_second = max_traces_per_second
        self._budget = TraceBudget(max_traces_per_second, clock)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        decided = ALWAYS_ON if self._budget.take() else ALWAYS_OFF
        return decided.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"RateLimitingSampler{{{self._max_traces_per_second:g}}}"


class PerOperationSampler(Sampler):
    """By the name of the span that starts the trace; an operation that is rare gets its lower bound all the same."""

    def __init__(self, strategy: PerOperation, clock: Clock) -> None:
        self._strategy = strategy
        self._clock = clock
        self._default = TraceIdRatioBased(strategy.default_sampling_rate)
        self._operations = {name: TraceIdRatioBased(rate) for name, rate in strategy.operations}
        self._lower_bound = strategy.lower_bound_traces_per_second
        self._budgets: dict[str, TraceBudget] = {}

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        by_rate = self._operations.get(name, self._default)
        result = by_rate.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        # A trace that the rate keeps uses the budget too: the bound is of all traces, not on top of them.
        if self._lower_bound and self._within_bound(name) and result.decision is Decision.DROP:
            return ALWAYS_ON.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        return result

    def get_description(self) -> str:
        rates = ",".join(f"{name}:{rate:g}" for name, rate in self._strategy.operations)
        default = self._strategy.default_sampling_rate
        return f"PerOperationSampler{{default:{default:g},lowerBound:{self._lower_bound:g},operations:[{rates}]}}"

    def _within_bound(self, name: str) -> bool:
        budget = self._budgets.get(name)
        if budget is None:
            if len(self._budgets) >= _MOST_OPERATIONS:
                return False
            # Two threads may come here at once; both use the one that is stored.
            budget = self._budgets.setdefault(name, TraceBudget(self._lower_bound, self._clock))
        return budget.take()
