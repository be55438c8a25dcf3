"""Metrics of a process of its own: to a real collector by OTLP, over HTTP, or to nobody."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]

# What a service does, in small: it measures, is scraped by itself, and stops.
_PROCESS = """
import asyncio, json, logging, time, urllib.request
from services.runtime.metric_names import WALLET_SIGNATURE_DURATION, WALLET_TRANSFERS, WALLET_EVIDENCE_QUEUE_DEPTH
from services.runtime.metrics import counter, histogram, observe
from services.runtime.settings import ServiceSettings
from services.runtime import server

settings = ServiceSettings()
transfers, duration = counter(WALLET_TRANSFERS), histogram(WALLET_SIGNATURE_DURATION)
observe(WALLET_EVIDENCE_QUEUE_DEPTH, lambda: [(7, None)])
told, ports = {}, []

class Ports(logging.Handler):
    def emit(self, record):
        ports.append(record.port)

logging.getLogger("services.runtime.metrics_http").addHandler(Ports())

async def main():
    transfers.add(3, {"wallet.state": "ACCEPTED"})
    duration.series({"wallet.signature.status": "success"}).record(0.0004)
    if ports:
        told["url"] = f"http://127.0.0.1:{ports[0]}/metrics"
        def scrape():
            with urllib.request.urlopen(told["url"]) as reply:
                return reply.read().decode()
        told["scraped"] = await asyncio.to_thread(scrape)
    told["stopping_at"] = time.monotonic()

try:
    server.run_service("signer", settings, main)
finally:
    told["stopped_after_s"] = time.monotonic() - told["stopping_at"]
    print("TOLD " + json.dumps(told), flush=True)
"""


def run(**environment: str) -> dict[str, Any]:
    """What the process told, once it has ended well."""
    ended = subprocess.run(
        [sys.executable, "-c", _PROCESS],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (told,) = [line for line in ended.stdout.splitlines() if line.startswith("TOLD ")]
    return {"log": ended.stdout, **json.loads(told.removeprefix("TOLD "))}


class Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self) -> None:
        self.requests: list[metrics_service_pb2.ExportMetricsServiceRequest] = []

    def Export(self, request: Any, context: Any) -> metrics_service_pb2.ExportMetricsServiceResponse:
        self.requests.append(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def newest(self) -> dict[str, Any]:
        """Metric name → its message, of the last request."""
        (resource,) = self.requests[-1].resource_metrics
        names = {one.key: one.value.string_value for one in resource.resource.attributes}
        assert names["service.name"] == "signer"
        return {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    server, collecting = grpc.server(futures.ThreadPoolExecutor(2)), Collector()
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collecting, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collecting, f"http://127.0.0.1:{port}"
    server.stop(None)


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_collector_has_all_metrics_when_the_process_has_stopped(collector: tuple[Collector, str]) -> None:
    collecting, endpoint = collector
    run(OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=endpoint)
    metrics = collecting.newest()
    (point,) = metrics["wallet.transfers"].sum.data_points
    assert (point.as_int, metrics["wallet.transfers"].sum.is_monotonic) == (3, True)
    (point,) = metrics["wallet.signature.duration"].histogram.data_points
    assert (point.count, point.sum, metrics["wallet.signature.duration"].unit) == (1, 0.0004, "s")
    (point,) = metrics["wallet.evidence.queue.depth"].sum.data_points
    assert (point.as_int, metrics["wallet.evidence.queue.depth"].sum.is_monotonic) == (7, False)


def test_a_process_that_is_scraped_and_exports_tells_both_the_same(collector: tuple[Collector, str]) -> None:
    collecting, endpoint = collector
    told = run(OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=endpoint, WALLET_METRICS_LISTEN="127.0.0.1:0")
    assert 'wallet_transfers_total{wallet_state="ACCEPTED"} 3\n' in told["scraped"]
    assert "wallet_evidence_queue_depth 7\n" in told["scraped"]
    assert collecting.newest()["wallet.transfers"].sum.data_points[0].as_int == 3


def test_a_dead_collector_does_not_hold_up_the_stop() -> None:
    told = run(OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"http://{free_address()}")
    assert told["stopped_after_s"] < 5


def test_a_port_of_0_is_a_free_one_which_the_log_tells() -> None:
    told = run(WALLET_METRICS_LISTEN="127.0.0.1:0")
    (served,) = [line for line in told["log"].splitlines() if "metrics are served" in line]
    assert f":{json.loads(served)['port']}/" in told["url"]
    assert "wallet_transfers_total" in told["scraped"]


@pytest.mark.parametrize(
    "environment", [{}, {"OTEL_SDK_DISABLED": "true", "WALLET_METRICS_LISTEN": "127.0.0.1:0"}], ids=["unset", "off"]
)
def test_who_is_not_asked_to_tell_serves_nothing(environment: dict[str, str]) -> None:
    assert "metrics are served" not in run(**environment)["log"]
