"""Where metrics go: by OTLP to whoever is named, and as text to whoever asks. Without either nothing is kept."""

from __future__ import annotations

import os
from dataclasses import replace
from time import monotonic
from typing import Any

from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricExportResult,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from services.runtime.metric_names import PROCESS_UPTIME
from services.runtime.metrics import SCOPE, collect_histograms, observe
from services.runtime.mtls import channel_credentials
from services.runtime.openmetrics import render
from services.runtime.settings import ServiceSettings

_SHUTDOWN_MS = 2_000


class _Exporter(OTLPMetricExporter):
    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **options: Any) -> MetricExportResult:
        return super().export(_with_histograms(metrics_data), timeout_millis, **options)


class ProcessMetrics:
    """The metrics of this process, from start to stop."""

    def __init__(self, service: str, settings: ServiceSettings, endpoint: str) -> None:
        self._scraped = InMemoryMetricReader()
        readers: list[MetricReader] = [self._scraped]
        if endpoint:
            readers.append(PeriodicExportingMetricReader(_open_exporter(endpoint, settings)))
        self._provider = MeterProvider(readers, Resource.create({"service.name": service}), shutdown_on_exit=False)
        metrics.set_meter_provider(self._provider)
        started = monotonic()
        # Always there, so that the SDK never has nothing to export: then it would not ask for the histograms.
        observe(PROCESS_UPTIME, lambda: [(monotonic() - started, None)])

    def scrape(self, *, openmetrics: bool) -> str:
        """All metrics as text: OpenMetrics 1.0 with exemplars, or Prometheus' own format without."""
        data = self._scraped.get_metrics_data()
        return render(_with_histograms(data), openmetrics=openmetrics) if data is not None else ""

    def stop(self) -> None:
        """Export a last time."""
        self._provider.shutdown(_SHUTDOWN_MS)


def start_metrics(service: str, settings: ServiceSettings) -> ProcessMetrics | None:
    """Install the global meter provider, if anybody is to see it: OTEL_EXPORTER_OTLP_METRICS_ENDPOINT is set, or
    WALLET_METRICS_LISTEN is. OTEL_SDK_DISABLED=true switches all of it off.

    OTEL_EXPORTER_OTLP_ENDPOINT does not count: it is tracestore's, which stores no metrics.
    """
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "")
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or not (endpoint or settings.metrics_listen):
        return None
    return ProcessMetrics(service, settings, endpoint)


def _open_exporter(endpoint: str, settings: ServiceSettings) -> _Exporter:
    """The SDK's own variables decide (…_METRICS_INSECURE, …_METRICS_CERTIFICATE); without, it is our mTLS."""
    named = "OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE" in os.environ
    secure = endpoint.startswith("https://") and not named
    return _Exporter(endpoint=endpoint, credentials=channel_credentials(settings.tls_dir) if secure else None)


def _with_histograms(data: MetricsData) -> MetricsData:
    histograms = collect_histograms()
    if not histograms:
        return data
    (ours,) = data.resource_metrics
    scope = ScopeMetrics(InstrumentationScope(SCOPE), histograms, "")
    return MetricsData([replace(ours, scope_metrics=[*ours.scope_metrics, scope])])
