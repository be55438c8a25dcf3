"""What the gateway answers where the operator's strategy leaves everything out that it may."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from services.gateway import acceptance, http_gate, saga
from services.gateway.telemetry import SIGNATURE_ROOTS
from services.runtime import rpc_tracing
from tests.fakes.recorded_spans import recording_provider
from tests.integration.gateway_harness import Bench, Client, plain


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    tracer = recording_provider(exporter, ALWAYS_OFF, SIGNATURE_ROOTS).get_tracer("test")
    for module in (acceptance, http_gate, saga):
        monkeypatch.setattr(module, "tracer", tracer)
    monkeypatch.setattr(rpc_tracing, "_tracer", tracer)
    return exporter


async def test_a_request_that_is_left_out_does_not_claim_a_recorded_trace(
    client: Client, spans: InMemorySpanExporter
) -> None:
    response = await client.http.get("/v1/transfers")
    assert response.status_code == 200
    assert response.headers["traceparent"].endswith("-00")
    assert response.headers["traceparent"][3:35] == response.headers["x-trace-id"]
    assert not [span for span in spans.get_finished_spans() if span.name.startswith("GET")]


async def test_a_transfer_is_traced_to_its_signature(client: Client, bench: Bench, spans: InMemorySpanExporter) -> None:
    transfer = (await client.post(plain())).json()
    assert transfer["traceparent"].endswith("-01")
    await client.until(transfer["id"], "SUBMITTED")
    assert bench.suite.signer.signed[transfer["id"]].traceparent == transfer["traceparent"]
    trace = {
        span.name for span in spans.get_finished_spans() if f"{span.context.trace_id:032x}" == transfer["trace_id"]
    }
    assert {"POST /v1/transfers", "wallet.v1.Signer/SignTransaction"} <= trace
