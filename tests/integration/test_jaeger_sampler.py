"""The Jaeger remote sampler and the servers it asks: right ones, wrong ones, huge ones, and slow ones."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from time import monotonic

import grpc
import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from protos.jaeger.api_v2 import sampling_pb2
from services.runtime.jaeger_sampler import JaegerRemoteSampler, open_source
from services.runtime.jaeger_sampler.sources import MAX_ANSWER_BYTES, SourceFailed, grpc_source, http_source
from services.runtime.jaeger_sampler.strategy import MalformedStrategy, PerOperation, Probabilistic, RateLimiting
from services.runtime.mtls import server_credentials
from services.runtime.sampling import open_strategy
from services.runtime.settings import SERVICES_DIR, ServiceSettings
from services.runtime.telemetry import format_traceparent
from tests.fakes.recorded_spans import recording_provider
from tests.integration.sampling_servers import GrpcCollector, HttpCollector, body

_HALF = b'{"strategyType":0,"probabilisticSampling":{"samplingRate":0.5}}'
_NEVER = b'{"strategyType":0,"probabilisticSampling":{"samplingRate":0}}'


def test_by_http_it_asks_for_its_service() -> None:
    with HttpCollector(body(_HALF)).serving() as collector:
        assert open_source(collector.endpoint, "a b&c")() == Probabilistic(0.5)
        assert collector.paths == ["/sampling?service=a%20b%26c"]


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (body(b"no such service", 404), SourceFailed, "404"),
        (body(_HALF, 302), SourceFailed, "302"),
        (body(b"<html>"), MalformedStrategy, "JSON"),
        (body(b'{"probabilisticSampling":{"samplingRate":2}}'), MalformedStrategy, "samplingRate"),
        (body(_HALF + b" " * MAX_ANSWER_BYTES), SourceFailed, "longer"),
        (lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH\r\n"), SourceFailed, "BadStatusLine"),
        (lambda handler: None, SourceFailed, "RemoteDisconnected"),
    ],
)
def test_a_wrong_http_answer_is_told_apart(
    answer: Callable[[BaseHTTPRequestHandler], None], error: type[Exception], says: str
) -> None:
    with HttpCollector(answer).serving() as collector, pytest.raises(error, match=says):
        open_source(collector.endpoint, "api")()


def test_an_answer_that_is_cut_short_is_none() -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(_HALF)))
        handler.end_headers()
        handler.wfile.write(_HALF[:-1])

    with HttpCollector(cut).serving() as collector, pytest.raises(MalformedStrategy):
        open_source(collector.endpoint, "api")()


@pytest.mark.parametrize("has_headers", [True, False])
def test_a_server_that_drips_is_left_after_the_time_limit(has_headers: bool) -> None:
    """Each piece comes within a socket's time limit; all of them would take for ever."""
    ended = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if has_headers else b""))
        for _ in range(1_000):
            if ended.wait(0.02):
                return
            try:
                handler.wfile.write(b"x")
            except OSError:
                return

    with HttpCollector(drip).serving() as collector:
        with pytest.raises(SourceFailed, match=r"within 0\.3 s"):
            http_source(collector.endpoint, "api", timeout_s=0.3)()
        ended.set()


def test_by_grpc_it_asks_for_its_service() -> None:
    answer = sampling_pb2.SamplingStrategyResponse(
        operationSampling=sampling_pb2.PerOperationSamplingStrategies(
            defaultSamplingProbability=0.1,
            defaultLowerBoundTracesPerSecond=2.5,
            perOperationStrategies=[
                sampling_pb2.OperationSamplingStrategy(
                    operation="never", probabilisticSampling=sampling_pb2.ProbabilisticSamplingStrategy()
                )
            ],
        )
    )
    with GrpcCollector(lambda _: answer).serving() as collector:
        assert open_source(f"http://{collector.address}", "api")() == PerOperation(0.1, 2.5, (("never", 0.0),))
        assert collector.services == ["api"]
        limit = sampling_pb2.RateLimitingSamplingStrategy(maxTracesPerSecond=3)
        collector.answer = lambda _: sampling_pb2.SamplingStrategyResponse(
            strategyType=sampling_pb2.RATE_LIMITING, rateLimitingSampling=limit
        )
        assert open_source(f"http://{collector.address}/", "api")() == RateLimiting(3)


def _refuse(context: grpc.ServicerContext) -> sampling_pb2.SamplingStrategyResponse:
    context.abort(grpc.StatusCode.NOT_FOUND, "no such service")


def _huge(_: grpc.ServicerContext) -> sampling_pb2.SamplingStrategyResponse:
    listed = sampling_pb2.OperationSamplingStrategy(operation="x" * MAX_ANSWER_BYTES)
    return sampling_pb2.SamplingStrategyResponse(
        operationSampling=sampling_pb2.PerOperationSamplingStrategies(perOperationStrategies=[listed])
    )


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (_refuse, SourceFailed, "NOT_FOUND: no such service"),
        (_huge, SourceFailed, "RESOURCE_EXHAUSTED"),
        (lambda _: sampling_pb2.SamplingStrategyResponse(), MalformedStrategy, "probabilisticSampling"),
        (
            lambda _: sampling_pb2.SamplingStrategyResponse(
                probabilisticSampling=sampling_pb2.ProbabilisticSamplingStrategy(samplingRate=float("nan"))
            ),
            MalformedStrategy,
            "samplingRate",
        ),
    ],
)
def test_a_wrong_grpc_answer_is_told_apart(
    answer: Callable[[grpc.ServicerContext], sampling_pb2.SamplingStrategyResponse], error: type[Exception], says: str
) -> None:
    with GrpcCollector(answer).serving() as collector, pytest.raises(error, match=says):
        open_source(f"http://{collector.address}", "api")()


def test_a_slow_grpc_server_is_left_after_the_time_limit() -> None:
    ended = threading.Event()

    def sleep(_: grpc.ServicerContext) -> sampling_pb2.SamplingStrategyResponse:
        ended.wait(30)
        return sampling_pb2.SamplingStrategyResponse()

    with GrpcCollector(sleep).serving() as collector:
        started = monotonic()
        with pytest.raises(SourceFailed, match="DEADLINE_EXCEEDED"):
            grpc_source(f"http://{collector.address}", "api", timeout_s=0.3)()
        assert monotonic() - started < 3
        ended.set()


def test_nobody_there_is_a_failure_like_another() -> None:
    with GrpcCollector(_refuse).serving() as collector:
        address = collector.address
    with pytest.raises(SourceFailed, match="UNAVAILABLE"):
        open_source(f"http://{address}", "api")()
    with pytest.raises(SourceFailed, match="ConnectionRefusedError"):
        open_source(f"http://{address}/sampling", "api")()


def test_the_thread_follows_what_changes_and_keeps_it_through_an_outage() -> None:
    with HttpCollector(body(_HALF)).serving() as collector:
        sampler = JaegerRemoteSampler("api", open_source(collector.endpoint, "api"), polling_interval_s=0.02)
        sampler.start()
        collector.wait_for_questions(2)
        half = sampler.version
        assert half
        for wrong in (body(b"{}"), body(b"", 503), lambda handler: None):
            collector.answer = wrong
            collector.wait_for_questions(3)
            assert sampler.version == half
        collector.answer = body(_NEVER)
        collector.wait_for_questions(4)
        assert sampler.version not in (0, half)
        assert sampler.get_description() == "JaegerRemoteSampler{TraceIdRatioBased{0.0}}"
        sampler.stop()


_FORKING = """
import os, sys, time
from services.runtime.jaeger_sampler import JaegerRemoteSampler, open_source
sampler = JaegerRemoteSampler("parent", open_source(sys.argv[1], "parent"), polling_interval_s=0.02)
sampler.start()
while not sampler.version:
    time.sleep(0.01)
before = sampler.version
child = os.fork()
if not child:
    # Only a thread of the child's own can find the second strategy.
    while sampler.version == before:
        time.sleep(0.01)
    os._exit(7)
sampler.stop()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def _run_until(
    asked: threading.Event, program: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A program that reads its input to the end, which comes when `asked` is set."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=SERVICES_DIR.parent,
        env={"PATH": os.defpath, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        asked.wait(30)
        # Less than the five seconds that a question may take.
        out, err = process.communicate("", timeout=4)
    finally:
        process.kill()
        process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_a_child_of_the_process_asks_for_itself() -> None:
    asked = iter(range(1_000_000))
    enough = 40

    def answer(handler: BaseHTTPRequestHandler) -> None:
        body(_HALF if next(asked) < enough else _NEVER)(handler)

    with HttpCollector(answer).serving() as collector:
        done = subprocess.run(
            [sys.executable, "-c", _FORKING, collector.endpoint],
            cwd=SERVICES_DIR.parent,
            env={"PATH": os.defpath},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 7, done.stderr


_ENDING = """
import sys
from services.runtime.jaeger_sampler import JaegerRemoteSampler, open_source
sampler = JaegerRemoteSampler("api", open_source(sys.argv[1], "api"))
sampler.start()
sys.stdin.read()
print("ended")
"""


@pytest.mark.parametrize("is_grpc", [False, True])
def test_no_question_under_way_holds_up_the_end_of_the_process(is_grpc: bool) -> None:
    asked, ended = threading.Event(), threading.Event()

    def hold(_: object) -> sampling_pb2.SamplingStrategyResponse:
        asked.set()
        ended.wait(60)
        return sampling_pb2.SamplingStrategyResponse()

    def hold_http(handler: BaseHTTPRequestHandler) -> None:
        hold(handler)

    with HttpCollector(hold_http).serving() as by_http, GrpcCollector(hold).serving() as by_grpc:
        endpoint = f"http://{by_grpc.address}" if is_grpc else by_http.endpoint
        done = _run_until(asked, _ENDING, endpoint)
        ended.set()
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


_CONFIGURED = """
import sys
from opentelemetry import trace
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
_OTelSDKConfigurator().configure(auto_instrumentation_version="1")
print(trace.get_tracer_provider().sampler.get_description())
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("name", "described"),
    [
        ("jaeger_remote", "JaegerRemoteSampler{TraceIdRatioBased{0.25}}"),
        ("parentbased_jaeger_remote", "ParentBased{root:JaegerRemoteSampler{TraceIdRatioBased{0.25}},"),
    ],
)
def test_the_sdk_finds_it_by_its_entry_point(name: str, described: str) -> None:
    asked = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        body(b"", 503)(handler)

    with HttpCollector(answer).serving() as collector:
        done = _run_until(
            asked,
            _CONFIGURED,
            OTEL_TRACES_SAMPLER=name,
            OTEL_TRACES_SAMPLER_ARG=f"endpoint={collector.endpoint},initialSamplingRate=0.25",
            OTEL_SERVICE_NAME="somebody",
            OTEL_TRACES_EXPORTER="none",
            OTEL_METRICS_EXPORTER="none",
            OTEL_LOGS_EXPORTER="none",
        )
        assert done.stdout.startswith(described), done.stderr
        assert collector.paths[0] == "/sampling?service=somebody"


def test_its_gauges_tell_age_and_version() -> None:
    reader = InMemoryMetricReader()
    provider = metrics.get_meter_provider()
    if not isinstance(provider, MeterProvider):
        # OpenTelemetry takes one provider a process.
        provider = MeterProvider([reader])
        metrics.set_meter_provider(provider)
    else:
        provider.add_metric_reader(reader)
    with HttpCollector(body(_HALF)).serving() as collector:
        sampler = JaegerRemoteSampler("measured", open_source(collector.endpoint, "measured"))
        sampler.poll()
        data = reader.get_metrics_data()
    assert data is not None
    points = {
        metric.name: point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
        if isinstance(point, NumberDataPoint) and (point.attributes or {}).get("service.name") == "measured"
    }
    assert points["jaeger_remote_sampler.strategy.version"] == sampler.version
    assert 0 <= points["jaeger_remote_sampler.strategy.age"] < 60


# Our services: OTEL_TRACES_SAMPLER beneath the signature floor.


def test_a_service_drops_what_the_strategy_drops_and_never_a_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpCollector(body(_NEVER)).serving() as collector:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_jaeger_remote")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", f"endpoint={collector.endpoint},pollingIntervalMs=20")
        strategy = open_strategy("gateway", ServiceSettings())
        assert isinstance(strategy, JaegerRemoteSampler)
        collector.wait_for_questions(2)
        exporter = InMemorySpanExporter()
        tracer = recording_provider(exporter, strategy, frozenset({"POST /v1/transfers"})).get_tracer("test")
        with tracer.start_as_current_span("GET /v1/transfers") as dropped:
            assert format_traceparent(dropped.get_span_context()).endswith("-00")
            with tracer.start_as_current_span("wallet.v1.Broadcaster/GetSubmissions") as below:
                assert format_traceparent(below.get_span_context()).endswith("-00")
                assert below.get_span_context().trace_id == dropped.get_span_context().trace_id
        with tracer.start_as_current_span("POST /v1/transfers") as root:
            assert format_traceparent(root.get_span_context()).endswith("-01")
            tracer.start_span("wallet.v1.Signer/SignTransaction").end()
        strategy.stop()
    assert [span.name for span in exporter.get_finished_spans()] == [
        "wallet.v1.Signer/SignTransaction",
        "POST /v1/transfers",
    ]
    assert set(collector.paths) == {"/sampling?service=gateway"}


@pytest.mark.parametrize("is_grpc", [False, True])
def test_a_service_asks_over_mtls_whoever_collects_its_spans(
    is_grpc: bool, dev_ca: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = sampling_pb2.ProbabilisticSamplingStrategy(samplingRate=0)
    answer = sampling_pb2.SamplingStrategyResponse(probabilisticSampling=never)
    certified = dev_ca("jaeger-collector")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certified / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certified / "cert.pem", certified / "key.pem")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "jaeger_remote")
    with (
        HttpCollector(body(_NEVER)).serving(context) as by_http,
        GrpcCollector(lambda _: answer).serving(server_credentials(certified)) as by_grpc,
    ):
        endpoint = f"https://{by_grpc.address}" if is_grpc else by_http.endpoint
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", f"endpoint={endpoint}")
        for name, described in (("tracestore", "1.0"), ("jaeger-collector", "0.0")):
            strategy = open_strategy("gateway", ServiceSettings(tls_dir=dev_ca("gateway"), collector_name=name))
            assert isinstance(strategy, JaegerRemoteSampler)
            strategy.stop()
            strategy.poll()
            assert strategy.get_description() == f"JaegerRemoteSampler{{TraceIdRatioBased{{{described}}}}}"
