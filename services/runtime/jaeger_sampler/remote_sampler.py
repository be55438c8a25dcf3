"""The sampler: a thread asks every few seconds, spans are decided by the last good answer."""

from __future__ import annotations

import logging
import os
import random
import threading
import weakref
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation, get_meter
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

from .samplers import sampler_of
from .sources import Source
from .strategy import Probabilistic, Strategy, version_of

# A share of the interval, up or down: processes that were started together do not go on asking together.
_JITTER = 0.1

_log = logging.getLogger(__name__)
_meter = get_meter("jaeger_remote_sampler")
_samplers: weakref.WeakSet[JaegerRemoteSampler] = weakref.WeakSet()


class _Followed(NamedTuple):
    """A strategy and its sampler, changed together: a span sees the old pair or the new one."""

    strategy: Strategy
    sampler: Sampler
    # 0 before the first answer.
    version: int


class JaegerRemoteSampler(Sampler):
    """Decides by what `source` answered last; by the initial rate before the first answer, whatever happens later.

    `start` begins to ask. A failure changes nothing: it is logged once until an answer comes again, and the gauge
    `jaeger_remote_sampler.strategy.age` grows. An answer that says the same leaves counted budgets as they are.
    """

    def __init__(
        self,
        service_name: str,
        source: Source,
        *,
        polling_interval_s: float = 10.0,
        initial_sampling_rate: float = 0.001,
    ) -> None:
        initial = Probabilistic(initial_sampling_rate)
        self._followed = _Followed(initial, sampler_of(initial), 0)
        self._service_name = service_name
        self._source = source
        self._polling_interval_s = polling_interval_s
        self._answered_at = monotonic()
        self._is_failing = False
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        _samplers.add(self)

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
        sampler = self._followed.sampler
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"JaegerRemoteSampler{{{self._followed.sampler.get_description()}}}"

    @property
    def age_s(self) -> float:
        """Seconds since the last good answer; before the first one, since the sampler was made."""
        return monotonic() - self._answered_at

    @property
    def version(self) -> int:
        """Of the strategy: the same in every process that follows the same one; 0 before the first answer."""
        return self._followed.version

    def start(self) -> None:
        """Ask now, and then every interval, in a thread that ends with the process and after a fork begins anew."""
        self._start_thread()
        if hasattr(os, "register_at_fork"):
            weak_restart = weakref.WeakMethod(self._restart_in_child)

            def restart() -> None:
                if restart_in_child := weak_restart():
                    restart_in_child()

            os.register_at_fork(after_in_child=restart)

    def stop(self) -> None:
        """Ask no more. What was answered last stays in force."""
        self._stopped.set()

    def poll(self) -> None:
        """Ask once. Never raises: a sampler that fails must not be noticed by what it samples."""
        try:
            strategy = self._source()
        except Exception as error:
            log_level = logging.DEBUG if self._is_failing else logging.WARNING
            _log.log(log_level, "the sampling strategy was not updated, the last one stays: %s", error)
            self._is_failing = True
            return
        if self._is_failing:
            _log.info("the sampling strategy is being updated again")
            self._is_failing = False
        self._answered_at = monotonic()
        if strategy != self._followed.strategy or not self._followed.version:
            self._followed = _Followed(strategy, sampler_of(strategy), version_of(strategy))
            _log.info("a new sampling strategy is in force: %s", self._followed.sampler.get_description())

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._poll_until_stopped, name="JaegerRemoteSampler", daemon=True)
        self._thread.start()

    def _poll_until_stopped(self) -> None:
        stopped = self._stopped
        while not stopped.is_set():
            self.poll()
            stopped.wait(self._polling_interval_s * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 - no secret

    def _restart_in_child(self) -> None:
        was_stopped = self._stopped.is_set()
        # Threads of the parent may have held these locks when it forked: the child has new ones.
        self._stopped = threading.Event()
        self._followed = self._followed._replace(sampler=sampler_of(self._followed.strategy))
        if was_stopped:
            self._stopped.set()
        else:
            self._start_thread()

    def _observation(self, value: float) -> Observation:
        return Observation(value, {"service.name": self._service_name})


def _ages(_: CallbackOptions) -> Iterable[Observation]:
    return [sampler._observation(sampler.age_s) for sampler in list(_samplers)]


def _versions(_: CallbackOptions) -> Iterable[Observation]:
    return [sampler._observation(sampler.version) for sampler in list(_samplers)]


# Once a process: of instruments with one name the SDK calls the first one's callbacks only.
_meter.create_observable_gauge(
    "jaeger_remote_sampler.strategy.age",
    [_ages],
    unit="s",
    description="Time since the collector answered with a strategy.",
)
_meter.create_observable_gauge(
    "jaeger_remote_sampler.strategy.version",
    [_versions],
    description="Names the strategy in force: processes with the same number follow the same one; 0 for none yet.",
)
