"""Which traces a strategy keeps, and what the remote sampler does when its collector fails."""

from __future__ import annotations

import ast
import logging
import random
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from services.runtime import jaeger_sampler
from services.runtime.jaeger_sampler import JaegerRemoteSampler
from services.runtime.jaeger_sampler.samplers import sampler_of
from services.runtime.jaeger_sampler.strategy import PerOperation, Probabilistic, RateLimiting, Strategy


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Collector:
    """Answers what it is told to; a strategy, or an error."""

    def __init__(self, answer: Strategy | Exception) -> None:
        self.answer = answer

    def __call__(self) -> Strategy:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def keeps(sampler: Sampler, name: str = "op", trace_id: int = 1) -> bool:
    return sampler.should_sample(Context(), trace_id, name).decision is Decision.RECORD_AND_SAMPLE


def kept(sampler: Sampler, count: int, name: str = "op") -> int:
    """How many of `count` traces with the highest id, which a rate below 1 never keeps."""
    return sum(keeps(sampler, name, 2**128 - 1) for _ in range(count))


def test_a_rate_keeps_its_share() -> None:
    sampler = sampler_of(Probabilistic(0.25))
    ids = random.Random(1)
    share = sum(keeps(sampler, trace_id=ids.getrandbits(128)) for _ in range(20_000)) / 20_000
    assert share == pytest.approx(0.25, abs=0.02)
    assert kept(sampler_of(Probabilistic(1.0)), 10) == 10
    assert not keeps(sampler_of(Probabilistic(0.0)), trace_id=2**128 - 2**64)


@pytest.mark.parametrize(
    ("per_second", "at_once", "in_ten_seconds"), [(0.0, 0, 0), (0.1, 1, 1), (1.0, 1, 10), (5.0, 5, 50)]
)
def test_a_limit_holds_at_once_and_over_time(per_second: float, at_once: int, in_ten_seconds: int) -> None:
    clock = Clock()
    sampler = sampler_of(RateLimiting(per_second), clock)
    assert kept(sampler, 100) == at_once
    later = 0
    for _ in range(1_000):
        clock.now_s += 0.01
        later += kept(sampler, 1)
    assert later == pytest.approx(in_ten_seconds, abs=1)
    # A quiet hour saves up one second's worth, no more.
    clock.now_s += 3_600
    assert kept(sampler, 10_000) == at_once


def test_an_operation_has_its_own_rate_and_the_others_the_default() -> None:
    sampler = sampler_of(PerOperation(0.0, 0.0, (("always", 1.0), ("never", 0.0))))
    assert (kept(sampler, 9, "always"), kept(sampler, 9, "never"), kept(sampler, 9, "other")) == (9, 0, 0)
    sampler = sampler_of(PerOperation(1.0, 0.0, (("never", 0.0),)))
    assert (kept(sampler, 9, "never"), kept(sampler, 9, "other")) == (0, 9)


def test_a_lower_bound_keeps_a_few_traces_of_each_operation() -> None:
    clock = Clock()
    sampler = sampler_of(PerOperation(0.0, 2.0, (("rare", 0.0), ("always", 1.0))), clock)
    assert (kept(sampler, 50, "rare"), kept(sampler, 50, "unlisted"), kept(sampler, 50, "always")) == (2, 2, 50)
    clock.now_s += 1
    assert (kept(sampler, 50, "rare"), kept(sampler, 50, "unlisted")) == (2, 2)


def test_operations_without_number_take_no_memory_without_bound() -> None:
    sampler = sampler_of(PerOperation(0.0, 1.0, ()))
    assert sum(kept(sampler, 1, f"GET /{number}") for number in range(10_000)) == 2_000


def test_the_initial_rate_holds_until_the_first_answer_and_that_one_until_the_next() -> None:
    collector = Collector(OSError("refused"))
    sampler = JaegerRemoteSampler("api", collector, initial_sampling_rate=1.0)
    assert keeps(sampler)
    sampler.poll()
    assert (keeps(sampler), sampler.version) == (True, 0)
    collector.answer = Probabilistic(0.0)
    sampler.poll()
    first = sampler.version
    assert (keeps(sampler), bool(first)) == (False, True)
    collector.answer = OSError("refused")
    sampler.poll()
    assert (keeps(sampler), sampler.version) == (False, first)
    collector.answer = Probabilistic(1.0)
    sampler.poll()
    assert (keeps(sampler), sampler.version == first) == (True, False)


def test_a_first_answer_that_is_the_initial_rate_counts_as_an_answer() -> None:
    sampler = JaegerRemoteSampler("api", Collector(Probabilistic(1.0)), initial_sampling_rate=1.0)
    sampler.poll()
    assert sampler.version


def test_an_answer_that_says_the_same_gives_no_new_budget() -> None:
    sampler = JaegerRemoteSampler("api", Collector(RateLimiting(0.001)))
    sampler.poll()
    assert kept(sampler, 10) == 1
    sampler.poll()
    assert kept(sampler, 10) == 0


def test_the_age_grows_while_the_collector_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(jaeger_sampler.remote_sampler, "monotonic", clock)
    collector = Collector(Probabilistic(0.5))
    sampler = JaegerRemoteSampler("api", collector)
    clock.now_s += 30
    assert sampler.age_s == 30
    sampler.poll()
    assert sampler.age_s == 0
    collector.answer = OSError("refused")
    clock.now_s += 60
    sampler.poll()
    assert sampler.age_s == 60


def test_an_outage_is_one_warning_and_its_end_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "services.runtime.jaeger_sampler")
    collector = Collector(OSError("connection refused"))
    sampler = JaegerRemoteSampler("api", collector)
    for _ in range(5):
        sampler.poll()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "connection refused" in caplog.text
    caplog.clear()
    collector.answer = Probabilistic(0.5)
    for _ in range(5):
        sampler.poll()
    assert [record.getMessage() for record in caplog.records] == [
        "the sampling strategy is being updated again",
        "a new sampling strategy is in force: TraceIdRatioBased{0.5}",
    ]


def test_it_asks_every_ten_seconds_but_not_in_step_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    asked = Collector(Probabilistic(0.5))
    sampler = JaegerRemoteSampler("api", asked)

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 100:
            sampler.stop()

    monkeypatch.setattr(sampler._stopped, "wait", wait)
    sampler._poll_until_stopped()
    assert 9 <= min(waits) < 9.5 < 10.5 < max(waits) <= 11


def test_no_error_of_a_source_reaches_the_process() -> None:
    for error in (ValueError("x"), RecursionError(), MemoryError(), AssertionError()):
        JaegerRemoteSampler("api", Collector(error)).poll()


@pytest.mark.parametrize(
    "strategy",
    [Probabilistic(1.0), RateLimiting(9), PerOperation(0.0, 9, ()), PerOperation(0.0, 0, (("op", 1.0),))],
)
def test_what_is_sampled_keeps_its_attributes_and_trace_state(strategy: Strategy) -> None:
    remote = SpanContext(1, 2, True, TraceFlags(1), TraceState([("vendor", "x")]))
    context = trace.set_span_in_context(NonRecordingSpan(remote), Context())
    result = sampler_of(strategy).should_sample(context, 1, "op", attributes={"http.route": "/"})
    assert result.decision is Decision.RECORD_AND_SAMPLE
    assert dict(result.attributes or {}) == {"http.route": "/"}
    assert result.trace_state == remote.trace_state


@pytest.mark.parametrize(("flag", "is_kept"), [(0, False), (1, True)])
def test_below_a_caller_the_parent_based_one_follows_the_flag(flag: int, is_kept: bool) -> None:
    sampler = ParentBased(JaegerRemoteSampler("api", Collector(OSError()), initial_sampling_rate=float(not flag)))
    remote = SpanContext(1, 2, True, TraceFlags(flag))
    context = trace.set_span_in_context(NonRecordingSpan(remote), Context())
    decision = sampler.should_sample(context, 1, "op").decision
    assert (decision is Decision.RECORD_AND_SAMPLE) is is_kept
    assert keeps(sampler) is not is_kept


@pytest.mark.parametrize(
    ("strategy", "described"),
    [
        (Probabilistic(0.5), "JaegerRemoteSampler{TraceIdRatioBased{0.5}}"),
        (RateLimiting(5), "JaegerRemoteSampler{RateLimitingSampler{5}}"),
        (
            PerOperation(0.5, 2, (("op", 1.0),)),
            "JaegerRemoteSampler{PerOperationSampler{default:0.5,lowerBound:2,operations:[op:1]}}",
        ),
    ],
)
def test_the_description_tells_what_is_in_force(strategy: Strategy, described: str) -> None:
    sampler = JaegerRemoteSampler("api", Collector(strategy))
    sampler.poll()
    assert sampler.get_description() == described


def _imports(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, "above its own package"
            found |= {node.module or ""} if node.level == 0 else set()
    return found


def test_it_stands_alone() -> None:
    """Whoever takes the folder takes all of it, with the stubs of one proto."""
    ours = {
        name
        for path in Path(jaeger_sampler.__file__).parent.glob("*.py")
        for name in _imports(path.read_text(encoding="utf-8"))
        if name.split(".")[0] in ("services", "tools", "protos")
    }
    assert {name.removesuffix("_grpc") for name in ours} == {"protos.jaeger.api_v2.sampling_pb2"}
