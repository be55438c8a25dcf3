"""What the evidence log alone tells of a transfer's trace is what its services have stored."""

from __future__ import annotations

from typing import Any

from services.tracestore.rebuilding import Difference, StoredSpan, differences, essential_spans
from tests.integration.suite.running_suite import Suite, somebody, until
from tools.goldenlink.rebuilding import steps_of_link

_READ = {"stringValue": str, "intValue": int, "doubleValue": float, "boolValue": bool}


def _stored(suite: Suite, trace_id: str) -> dict[str, StoredSpan]:
    found = {}
    for resource in suite.get(f"/v1/traces/{trace_id}")["resourceSpans"]:
        service = str(_attributes(resource["resource"])["service.name"])
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                found[span["spanId"]] = StoredSpan(service, span["name"], _attributes(span))
    return found


def _attributes(holder: dict[str, Any]) -> dict[str, Any]:
    return {
        one["key"]: _READ[kind](value)
        for one in holder.get("attributes", [])
        for kind, value in one["value"].items()
        if kind in _READ
    }


def test_the_log_and_the_stored_spans_agree(suite: Suite, account: dict[str, Any]) -> None:
    single = suite.finalized(account)
    batch = suite.until_ended(suite.send_batch([{"account_id": account["id"], "to": somebody(), "value_wei": "1"}] * 3))
    for transfer in (single, *batch):
        spans = essential_spans(steps_of_link(suite.link(transfer)))
        assert {"signer.signature", "broadcaster.submission", "broadcaster.inclusion"} == {span.name for span in spans}
        found: list[Difference] = []

        def agree(transfer: dict[str, Any] = transfer, found: list[Difference] = found, spans: Any = spans) -> bool:
            found[:] = differences(spans, _stored(suite, transfer["trace_id"]))
            return not found

        until(agree, f"the spans of {transfer['id']} are as the log says: {found}", 10.0)
