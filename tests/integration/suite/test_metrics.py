"""What the services of a whole suite tell of it over HTTP: counts that match what was done, and who was behind them."""

from __future__ import annotations

from typing import Any

import httpx

from tests.integration.suite.running_suite import Suite, somebody, until
from tests.integration.suite.scraped import Scraped, scrape
from tests.integration.suite.stored_spans import StoredSpan, stored_spans

_TRANSFERS = 5


def test_what_a_transfer_does_is_counted_by_who_does_it(suite: Suite, account: dict[str, Any]) -> None:
    names = ("gateway", "signer", "evidence", "tracestore")
    before = {name: Scraped(suite, name) for name in names}
    body = {"account_id": account["id"], "to": somebody(), "value_wei": "1"}
    ended = suite.until_ended(suite.send_batch([body] * _TRANSFERS))
    assert {transfer["state"] for transfer in ended} == {"FINALIZED"}
    after = {name: Scraped(suite, name) for name in names}

    def more(process: str, name: str, **labels: str) -> float:
        return after[process].total(name, **labels) - before[process].total(name, **labels)

    signed = {"wallet_signature_algorithm": "ecdsa_secp256k1", "wallet_signature_status": "success"}
    assert more("signer", "wallet_signatures_total", **signed) == _TRANSFERS
    assert more("signer", "wallet_signature_duration_seconds_count", **signed) == _TRANSFERS
    assert more("signer", "wallet_signature_duration_seconds_sum", **signed) > 0
    assert more("signer", "wallet_signature_duration_seconds_bucket", **signed, le="+Inf") == _TRANSFERS
    # What lies between may pass unseen, where two blocks come at once.
    for state in ("ACCEPTED", "FINALIZED"):
        assert more("gateway", "wallet_transfers_total", wallet_state=state) == _TRANSFERS, state
    # Intents, signatures, and what broadcaster enters: each in an append of its own, or with others.
    assert more("evidence", "wallet_evidence_append_duration_seconds_count") >= 3
    assert after["evidence"].total("wallet_evidence_queue_depth") == 0
    assert after["evidence"].total("wallet_evidence_blocked") == 0
    assert after["gateway"].total("wallet_dispatcher_queue_depth") == 0
    spans, seen = "wallet_tracestore_spans_total", before["tracestore"].total("wallet_tracestore_spans_total")
    until(lambda: Scraped(suite, "tracestore").total(spans) >= seen + _TRANSFERS, "their spans are counted")


def test_an_exemplar_leads_to_the_span_of_its_signature(suite: Suite, account: dict[str, Any]) -> None:
    transfer = suite.finalized(account)
    shown = Scraped(suite, "signer").exemplars("wallet_signature_duration_seconds_bucket")
    (of_transfer,) = [one for one in shown if one["trace_id"] == transfer["trace_id"]]
    assert until(lambda: _span_of(suite, of_transfer), "its span is stored").name == "signer.signature"
    of_append = Scraped(suite, "evidence").exemplars("wallet_evidence_append_duration_seconds_bucket")[0]
    assert until(lambda: _span_of(suite, of_append), "the append's span is stored").service == "evidence"


def _span_of(suite: Suite, exemplar: dict[str, str]) -> StoredSpan | None:
    spans = stored_spans(suite, exemplar["trace_id"])
    return next((span for span in spans if span.span_id == exemplar["span_id"]), None)


def test_a_denied_transfer_is_counted_and_no_signature(suite: Suite, account: dict[str, Any]) -> None:
    before = Scraped(suite, "signer")
    suite.until_state(suite.send(account, to=somebody(), value_wei=str(99 * 10**20)), "FAILED")
    after = Scraped(suite, "signer")
    denials, signatures = "wallet_policy_denials_total", "wallet_signature_duration_seconds_count"
    assert after.total(denials) == before.total(denials) + 1
    assert after.total(signatures) == before.total(signatures)


def test_every_process_says_which_service_it_is_and_nothing_else_is_served(suite: Suite) -> None:
    for process, url in suite.stack.record["metrics_urls"].items():
        told = Scraped(suite, process)
        assert told.total("target_info", service_name=process) == 1
        assert told.total("process_uptime_seconds") > 0
        assert httpx.get(url.removesuffix("/metrics"), trust_env=False).status_code == 404
        assert httpx.post(url, trust_env=False).status_code == 405
        assert scrape(suite, process, "text/plain; version=0.0.4").startswith("# TYPE ")
