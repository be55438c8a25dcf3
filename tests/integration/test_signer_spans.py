"""What a signature puts on the trace, and what it keeps off it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.core.errors import Reason, WalletError
from services.runtime import attributes
from services.runtime.db import Database
from services.runtime.telemetry import stored_context
from services.signer.service import SignerService
from tests.fakes.keys import FakeKeys
from tests.fakes.recorded_spans import recording_provider
from tests.integration.conftest import ServiceDatabase
from tests.integration.signer_harness import BURN, DirectStub, Harness, Log, make_settings, worker_environment


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = recording_provider(exporter)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


@pytest.fixture
async def signer(
    service_database: Callable[[str], ServiceDatabase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spans: InMemorySpanExporter,
) -> AsyncIterator[Harness]:
    own = service_database("signer")
    settings = make_settings(tmp_path, own.environment)
    for name, value in worker_environment(settings).items():
        monkeypatch.setenv(name, value)
    log, keys = Log(), FakeKeys()
    database = Database(settings)
    stubs: Any = DirectStub(log), DirectStub(log), DirectStub(keys)
    async with SignerService(settings, database, *stubs) as service:
        yield Harness(service, database, log, keys, keys.add("k1"), tmp_path, own.server)
    await database.close()


def _named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


async def test_one_signature_is_a_span_in_its_transfers_trace_over_the_token_call(
    signer: Harness, spans: InMemorySpanExporter
) -> None:
    request = signer.request("t-1", 0)
    signed = await signer.sign(request)
    (signature,) = _named(spans, "signer.signature")
    (token,) = _named(spans, "token.sign")
    assert f"{signature.context.trace_id:032x}" == request.traceparent[3:35]
    assert signature.parent is not None
    assert f"{signature.parent.span_id:016x}" == request.traceparent[36:52]
    assert token.parent == signature.context
    found = dict(signature.attributes or {})
    assert found[attributes.WALLET_SIGNATURE_STATUS] == "success"
    assert found[attributes.WALLET_TX_HASH] == "0x" + signed.tx_hash.hex()
    assert found[attributes.WALLET_EVIDENCE_INDEX] == signed.signature_index
    assert isinstance(found[attributes.WALLET_SIGNATURE_DURATION_MS], float)
    assert len(str(found[attributes.WALLET_ACCOUNT_ID])) == 16
    # The entries name the span that wrote them.
    assert {one.request.span_id for one in signer.log.link("t-1")} == {f"{signature.context.span_id:016x}"}


async def test_a_batch_has_one_token_call_in_its_own_trace_and_a_linked_span_an_item(
    signer: Harness, spans: InMemorySpanExporter
) -> None:
    requests = [signer.request(f"t-{nonce}", nonce) for nonce in range(5)]
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("batch") as batch:
        await signer.sign_all(*requests)
    here = batch.get_span_context()
    (token,) = _named(spans, "token.sign")
    assert token.context.trace_id == here.trace_id
    signatures = _named(spans, "signer.signature")
    assert [f"{one.context.trace_id:032x}" for one in signatures] == [one.traceparent[3:35] for one in requests]
    assert all([link.context.span_id for link in one.links] == [here.span_id] for one in signatures)
    assert [(one.attributes or {})[attributes.WALLET_SIGNATURE_ORDER] for one in signatures] == list(range(5))


async def test_a_call_in_the_transfers_own_trace_is_its_parent(signer: Harness, spans: InMemorySpanExporter) -> None:
    request = signer.request("t-1", 0)
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("call", stored_context(request.traceparent)) as call:
        await signer.sign(request)
    (signature,) = _named(spans, "signer.signature")
    assert signature.parent == call.get_span_context()


async def test_a_refusal_shows_and_no_personal_field_does(signer: Harness, spans: InMemorySpanExporter) -> None:
    request = signer.request("t-1", 0, to=BURN, data=bytes.fromhex("c0ffee00"))
    with pytest.raises(WalletError):
        await signer.sign(request)
    await signer.sign(signer.request("t-2", 0, value_wei=12345))
    refused, _ = _named(spans, "signer.signature")
    found = dict(refused.attributes or {})
    assert found[attributes.ERROR_TYPE] == Reason.POLICY_DENIED.name
    assert found[attributes.WALLET_POLICY_DECISION] == "deny"
    shown = "".join(span.to_json() for span in spans.get_finished_spans())
    for secret in (signer.sender.hex(), "11" * 20, "00" * 20, "alice", "192.0.2.1", "c0ffee00"):
        assert secret not in shown.lower()
