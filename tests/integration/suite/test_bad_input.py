"""Every refusal of a request over HTTP: problem details name the field and the rule, and a trace shows it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.suite.running_suite import CHAIN_ID, Suite, somebody, until
from tests.integration.suite.stored_spans import SERVER, stored_spans

RECEIVER = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
TRANSFER_CALL = "transfer(address,uint256)"
ROOT_SPAN = "POST /v1/transfers"


def refused(suite: Suite, reply: httpx.Response, status: int, reason: str, field: str, rule: str) -> dict[str, Any]:
    """The problem details, checked; and the refusal, seen in the trace that they name."""
    problem: dict[str, Any] = reply.json()
    assert (reply.status_code, problem["reason"]) == (status, reason), problem
    assert reply.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert any(error["field"] == field and rule in error["rule"] for error in problem["errors"]), problem["errors"]
    assert problem["trace_id"] == reply.headers["x-trace-id"] == reply.headers["traceparent"][3:35]
    shows_refusal(suite, problem["trace_id"], reason)
    return problem


def shows_refusal(suite: Suite, trace_id: str, reason: str, root: str = ROOT_SPAN) -> None:
    def look() -> bool:
        found = stored_spans(suite, trace_id)
        return any(span.kind == SERVER and span.name.startswith(root) and span.error == reason for span in found)

    until(look, f"trace {trace_id} shows {reason}", 10.0)


# name: (changes to a good request, status, reason, field, part of the rule)
BAD_REQUESTS: dict[str, tuple[dict[str, Any], int, str, str, str]] = {
    "address: wrong checksum": ({"to": RECEIVER.swapcase().replace("X", "x")}, 400, "INVALID_ADDRESS", "to", "EIP-55"),
    "address: too short": ({"to": RECEIVER[:-2]}, 400, "INVALID_ADDRESS", "to", "40 hex digits"),
    "amount: negative": ({"value_wei": "-1"}, 400, "INVALID_AMOUNT", "value_wei", "decimal"),
    "amount: fractional": ({"value_wei": "1.5"}, 400, "INVALID_AMOUNT", "value_wei", "decimal"),
    "amount: a JSON number": ({"value_wei": 15}, 400, "INVALID_AMOUNT", "value_wei", "decimal"),
    "amount: 2**256": ({"value_wei": str(2**256)}, 400, "INVALID_AMOUNT", "value_wei", "2**256"),
    "amount: missing": ({"value_wei": None}, 400, "INVALID_AMOUNT", "value_wei", "required"),
    "chain: not the account's": ({"chain_id": "eip155:1"}, 400, "INVALID_REQUEST", "chain_id", "account's chain"),
    "chain: no such form": ({"chain_id": "ethereum"}, 400, "INVALID_REQUEST", "chain_id", "eip155:N"),
    "account: unknown": ({"account_id": "acc-nobody"}, 404, "NOT_FOUND", "account_id", "account of this suite"),
    "account: unknown sender": (
        {"account_id": None, "from": RECEIVER, "chain_id": CHAIN_ID}, 404, "NOT_FOUND", "from", "account of this suite",
    ),
    "nonce: supplied": ({"nonce": 7}, 400, "INVALID_REQUEST", "nonce", "the suite assigns the nonce"),
    "field: unknown": ({"colour": "red"}, 400, "INVALID_REQUEST", "colour", "not a field"),
    "call: an argument missing": (
        {"value_wei": None, "call": {"signature": TRANSFER_CALL, "arguments": [RECEIVER]}},
        400, "INVALID_CALLDATA", "call.arguments", "",
    ),
    "call: an argument of another type": (
        {"value_wei": None, "call": {"signature": TRANSFER_CALL, "arguments": [RECEIVER, "-1"]}},
        400, "INVALID_CALLDATA", "call.arguments", "",
    ),
    "call: no signature": (
        {"value_wei": None, "call": {"signature": "transfer(", "arguments": []}},
        400, "INVALID_CALLDATA", "call.signature", "name(type",
    ),
    "data: odd digits": ({"data": "0xabc"}, 400, "INVALID_REQUEST", "data", "pattern"),
    "data: over 128 KiB": ({"data": "0x" + "00" * (128 * 1024 + 1)}, 400, "INVALID_CALLDATA", "data", "128 KiB"),
    "gas limit: above the block's": ({"gas_limit": str(2**40)}, 409, "GAS_LIMIT_ABOVE_BLOCK", "gas_limit", "at most"),
    "fee cap: below the base fee": (
        {"max_fee_per_gas_wei": "1"}, 409, "FEE_CAP_BELOW_BASE_FEE", "max_fee_per_gas_wei", "at least",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_field_is_named_with_its_rule(suite: Suite, account: dict[str, Any], name: str) -> None:
    changes, status, reason, field, rule = BAD_REQUESTS[name]
    good = {"account_id": account["id"], "to": RECEIVER, "value_wei": "1"}
    body = {member: value for member, value in {**good, **changes}.items() if value is not None}
    refused(suite, suite.post(body), status, reason, field, rule)


def test_an_account_of_a_chain_that_is_not_configured_cannot_send(suite: Suite, account: dict[str, Any]) -> None:
    made = suite.operator.post(f"/v1/wallets/{account['wallet_id']}/accounts", json={"chain_id": "eip155:5"})
    body = {"account_id": made.raise_for_status().json()["id"], "to": RECEIVER, "value_wei": "1"}
    refused(suite, suite.post(body), 400, "UNKNOWN_CHAIN", "chain_id", "eip155:31337")


def test_a_batch_is_refused_whole_and_names_each_bad_item(suite: Suite, account: dict[str, Any]) -> None:
    good = {"account_id": account["id"], "to": RECEIVER, "value_wei": "1"}
    call = {"account_id": account["id"], "to": RECEIVER, "call": {"signature": TRANSFER_CALL, "arguments": []}}
    before = suite.database("SELECT count(*) FROM gateway.transfers")
    key = {"Idempotency-Key": secrets.token_hex(8)}
    reply = suite.operator.post("/v1/transfers:batch", json={"transfers": [good, call, good, call]}, headers=key)
    problem = reply.json()
    assert (reply.status_code, problem["reason"]) == (400, "INVALID_CALLDATA")
    assert [(error["index"], error["field"]) for error in problem["errors"]] == [
        (1, "call.arguments"),
        (3, "call.arguments"),
    ]
    assert suite.database("SELECT count(*) FROM gateway.transfers") == before
    shows_refusal(suite, problem["trace_id"], "INVALID_CALLDATA", "POST /v1/transfers:batch")


def test_a_transfer_without_funds_fails_and_its_nonce_goes_to_the_next(suite: Suite) -> None:
    account = suite.make_account(1)
    first = suite.finalized(account)
    poor = suite.until_state(suite.send(account, to=somebody(), value_wei=str(2 * 10**18)), "FAILED")
    assert poor["failure"]["reason"] == "INSUFFICIENT_FUNDS"
    assert poor["failure"]["details"]["field"] == "value_wei"
    found = until(
        lambda: [span for span in stored_spans(suite, poor["trace_id"]) if span.name == "gateway.failure"] or None,
        "the trace shows the failure",
    )
    assert [span.error for span in found] == ["INSUFFICIENT_FUNDS"]
    following = suite.finalized(account)
    assert (first["nonce"], following["nonce"]) == (0, 1)


def test_an_idempotency_key_is_required_and_means_one_body(suite: Suite, account: dict[str, Any]) -> None:
    body = {"account_id": account["id"], "to": somebody(), "value_wei": "1"}
    missing = suite.operator.post("/v1/transfers", json=body)
    refused(suite, missing, 400, "IDEMPOTENCY_KEY_MISSING", "Idempotency-Key", "required")
    refused(suite, suite.post(body, "a key with spaces"), 400, "INVALID_REQUEST", "Idempotency-Key", "visible ASCII")
    key = secrets.token_hex(8)
    first, again = suite.post(body, key), suite.post(dict(reversed(body.items())), key)
    assert first.status_code == again.status_code == 202
    assert first.json()["id"] == again.json()["id"]
    assert first.headers["x-trace-id"] == again.headers["x-trace-id"] == first.json()["trace_id"]
    other = suite.post({**body, "value_wei": "2"}, key)
    refused(suite, other, 422, "IDEMPOTENCY_KEY_REUSED", "Idempotency-Key", "one key, one body")
    mine = suite.database(
        f"SELECT count(*) FROM gateway.transfers WHERE to_address = '\\x{body['to'][2:]}'"  # the receiver is fresh
    )
    assert mine == "1"


HOSTILE_TRACEPARENTS = {
    "no hex": "00-zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-00f067aa0ba902b7-01",
    "upper case": "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
    "trace id of zeros": f"00-{'0' * 32}-00f067aa0ba902b7-01",
    "span id of zeros": f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    "version ff": "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "version 00 with more": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
    "too short": "00-4bf92f3577b34da6a3ce929d0e0e4736-01",
    "endless": "00-" + "4b" * 4_000,
    "a query": "'; DROP TABLE tracestore.spans; --",
}


@pytest.mark.parametrize("name", HOSTILE_TRACEPARENTS)
def test_a_malformed_traceparent_starts_a_new_trace(suite: Suite, account: dict[str, Any], name: str) -> None:
    sent = HOSTILE_TRACEPARENTS[name]
    # A request that is refused for another reason: its trace is stored all the same.
    reply = suite.post({"account_id": account["id"], "to": RECEIVER}, traceparent=sent)
    problem = refused(suite, reply, 400, "INVALID_AMOUNT", "value_wei", "required")
    assert problem["trace_id"] not in sent.lower()
    assert problem["trace_id"].strip("0")
    (root,) = (span for span in stored_spans(suite, problem["trace_id"]) if span.name == ROOT_SPAN)
    assert root.parent_id == ""


def test_a_traceparent_sent_twice_is_none_and_a_good_one_is_adopted(suite: Suite, account: dict[str, Any]) -> None:
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    sent = f"00-{trace_id}-{span_id}-00"
    body = json.dumps({"account_id": account["id"], "to": RECEIVER}).encode()
    headers = [("Idempotency-Key", "k"), ("content-type", "application/json"), ("traceparent", sent)]
    adopted = suite.operator.post("/v1/transfers", content=body, headers=headers)
    twice = suite.operator.post("/v1/transfers", content=body, headers=[*headers, ("traceparent", sent)])
    assert refused(suite, twice, 400, "INVALID_AMOUNT", "value_wei", "required")["trace_id"] != trace_id
    assert refused(suite, adopted, 400, "INVALID_AMOUNT", "value_wei", "required")["trace_id"] == trace_id
    (root,) = (span for span in stored_spans(suite, trace_id) if span.name == ROOT_SPAN)
    assert root.parent_id == span_id
    # A signature operation is sampled, and so stored, although the caller said 00.
    assert adopted.headers["traceparent"].endswith("-01")


def test_a_body_over_one_mebibyte_is_refused_with_and_without_a_length(suite: Suite) -> None:
    body = b'{"account_id": "' + b"a" * 1024 * 1024 + b'"}'

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    for content in (body, pieces()):
        headers = {"Idempotency-Key": "k", "content-type": "application/json"}
        reply = suite.operator.post("/v1/transfers", content=content, headers=headers)
        refused(suite, reply, 413, "PAYLOAD_TOO_LARGE", "body", "1048576")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"to": 1, "to": 2}', b'{"value_wei": NaN}', b"\xff\xfe"])
def test_a_body_that_is_no_object_of_json_is_refused(suite: Suite, body: bytes) -> None:
    headers = {"Idempotency-Key": "k", "content-type": "application/json"}
    reply = suite.operator.post("/v1/transfers", content=body, headers=headers)
    problem = reply.json()
    assert (reply.status_code, problem["reason"]) == (400, "INVALID_REQUEST"), problem
    assert problem["errors"][0]["rule"]
    shows_refusal(suite, problem["trace_id"], "INVALID_REQUEST")


def test_who_may_not_is_told_why(suite: Suite, account: dict[str, Any]) -> None:
    body = {"account_id": account["id"], "to": RECEIVER, "value_wei": "1"}

    def refused_as(client: httpx.Client, status: int, reason: str) -> None:
        with client:
            refused(suite, suite.post(body, http=client), status, reason, "Authorization", "")

    refused_as(suite.client(suite.make_token("late", "operator", expires_in_days=0)), 401, "TOKEN_EXPIRED")
    for role in ("auditor", "approver"):
        with suite.client(suite.stack.api_token_file(role)) as client:
            refused(suite, suite.post(body, http=client), 403, "ROLE_REQUIRED", "Authorization", "role operator")
            assert client.get("/v1/status").status_code == 200
    stranger = suite.client(suite.stack.api_token_file("operator"))
    for value in ("", "Bearer", "Basic Zm9vOmJhcg==", f"Bearer gl_{'0' * 16}_{'A' * 43}"):
        stranger.headers["Authorization"] = value
        reply = suite.post(body, http=stranger)
        refused(suite, reply, 401, "UNAUTHENTICATED", "Authorization", "valid token")
        assert reply.headers["www-authenticate"] == "Bearer"
    stranger.close()
