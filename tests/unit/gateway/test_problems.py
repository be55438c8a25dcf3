from __future__ import annotations

import json

from services.core.errors import Code, Reason, WalletError
from services.gateway.problems import TRACEPARENT_KEY, problem_response, status_of

SCOPE = {"path": "/v1/transfers", TRACEPARENT_KEY: f"00-{'a' * 32}-{'b' * 16}-01"}


def test_every_reason_has_an_error_status() -> None:
    for reason in Reason:
        assert 400 <= status_of(WalletError(reason, "")) < 600
    assert status_of(WalletError(Reason.PAYLOAD_TOO_LARGE, "")) == 413
    # A peer that refuses this gateway is our defect, not the client's credential.
    assert status_of(WalletError(Reason.CALLER_NOT_ALLOWED, "")) == 500


def test_field_rule_and_index_become_an_error_and_figures_stay_details() -> None:
    refusal = WalletError(Reason.POLICY_DENIED, "above", field="value_wei", rule="≤ limit", index="3", limit_wei="9")
    response = problem_response(dict(SCOPE), refusal)
    body = json.loads(bytes(response.body))
    assert response.status_code == 403
    assert body["errors"] == [{"field": "value_wei", "rule": "≤ limit", "index": 3}]
    assert body["details"] == {"limit_wei": "9"}
    assert (body["trace_id"], body["instance"]) == ("a" * 32, "/v1/transfers")


def test_what_may_pass_by_itself_says_when_to_come_again() -> None:
    for reason in Reason:
        response = problem_response(dict(SCOPE), WalletError(reason, ""))
        assert ("retry-after" in response.headers) is (reason.code is Code.UNAVAILABLE)
