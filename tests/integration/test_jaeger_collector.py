"""An operator changes the strategies file of a stock Jaeger collector, and a service follows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.runtime.jaeger_sampler import JaegerRemoteSampler
from services.runtime.sampling import open_strategy
from services.runtime.settings import ServiceSettings
from tests.fakes.recorded_spans import recording_provider
from tests.integration.dependencies import Dependencies
from tests.integration.jaeger_collector import SamplingCollector

_STATUS, _LIST, _TRANSFER = "GET /v1/status", "GET /v1/transfers", "POST /v1/transfers"


@pytest.fixture
async def collector(dependencies: Dependencies, tmp_path: Path) -> AsyncIterator[SamplingCollector]:
    collector = SamplingCollector(tmp_path / "jaeger", dependencies.ports, reload_interval="200ms")
    collector.write({"default_strategy": {"type": "probabilistic", "param": 1.0}})
    await asyncio.to_thread(dependencies.launch, collector.spec)
    yield collector
    await asyncio.to_thread(dependencies.end, collector.spec.name)


async def until(has_happened: Callable[[], bool]) -> None:
    """The file is read every 200 ms, the collector asked every 100."""
    for _ in range(200):
        if has_happened():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("not within ten seconds")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_changed_rate_takes_effect_in_a_running_process(
    collector: SamplingCollector, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = collector.http_endpoint if protocol == "http" else collector.grpc_endpoint
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_jaeger_remote")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", f"endpoint={endpoint},pollingIntervalMs=100,initialSamplingRate=0")
    sampler = open_strategy("gateway", ServiceSettings())
    assert isinstance(sampler, JaegerRemoteSampler)
    exporter = InMemorySpanExporter()
    tracer = recording_provider(exporter, sampler, frozenset({_TRANSFER})).get_tracer("test")

    def sampled(name: str, of: int = 400) -> int:
        exporter.clear()
        for _ in range(of):
            tracer.start_span(name, Context()).end()
        return len(exporter.get_finished_spans())

    try:
        await until(lambda: sampler.version != 0)
        assert (sampled(_STATUS), sampled(_TRANSFER)) == (400, 400)

        def described(text: str) -> Callable[[], bool]:
            return lambda: sampler.get_description() == f"JaegerRemoteSampler{{{text}}}"

        collector.write(
            {
                "default_strategy": {"type": "probabilistic", "param": 1.0},
                "service_strategies": [{"service": "gateway", "type": "probabilistic", "param": 0.25}],
            }
        )
        await until(described("TraceIdRatioBased{0.25}"))
        assert 50 < sampled(_STATUS) < 150
        assert sampled(_TRANSFER) == 400

        # Nothing of a signature operation can be switched off, though it is asked for by name.
        off = {"operation": _TRANSFER, "type": "probabilistic", "param": 0.0}
        listed = {"operation": _LIST, "type": "probabilistic", "param": 1.0}
        operations = {"operation_strategies": [off, listed], "type": "probabilistic", "param": 0.0}
        collector.write({"service_strategies": [{"service": "gateway", **operations}]})
        await until(lambda: "PerOperationSampler" in sampler.get_description())
        assert (sampled(_STATUS), sampled(_LIST), sampled(_TRANSFER)) == (0, 400, 400)

        # What is no JSON changes nothing: the collector says so in its log and keeps what it had.
        version = sampler.version
        collector.strategies.write_text("{")
        await until(lambda: "failed to update sampling strategies" in collector.spec.log.read_text())
        assert (sampler.version, sampled(_LIST)) == (version, 400)

        # A rate that is none, Jaeger passes on.
        collector.write({"default_strategy": {"type": "probabilistic", "param": 1.5}})
        await until(lambda: '"param": 1.5' in collector.spec.log.read_text())
        await asyncio.to_thread(sampler.poll)
        assert (sampler.version, sampled(_LIST)) == (version, 400)

        collector.write({"service_strategies": [{"service": "gateway", "type": "ratelimiting", "param": 5}]})
        await until(described("RateLimitingSampler{5}"))
        assert 5 <= sampled(_STATUS) <= 10
        assert sampled(_TRANSFER) == 400
    finally:
        sampler.stop()
