"""The gateway from request to finalized transfer, with fake peers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from protos.wallet.v1 import evidence_pb2
from services.core.errors import Reason, WalletError
from services.gateway import acceptance, failing, http_gate, saga
from services.gateway.credentials import Role
from services.gateway.telemetry import SIGNATURE_ROOTS
from services.runtime import rpc_tracing
from tests.fakes.broadcaster import FINALIZED, INCLUDED, SAFE, SUBMITTED
from tests.fakes.recorded_spans import recording_provider
from tests.fakes.signer import DENIED_VALUE_WEI
from tests.fakes.txbuilder import POOR_VALUE_WEI, UNKNOWN_CHAIN
from tests.integration.gateway_harness import RECEIVER, Bench, Client, plain

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = recording_provider(exporter, signature_roots=SIGNATURE_ROOTS)
    for module in (acceptance, failing, http_gate, saga):
        monkeypatch.setattr(module, "tracer", provider.get_tracer("test"))
    monkeypatch.setattr(rpc_tracing, "_tracer", provider.get_tracer("test"))
    return exporter


async def ended(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    """The first span of this name, once it has ended."""
    async with asyncio.timeout(10):
        while True:
            for span in spans.get_finished_spans():
                if span.name == name:
                    return span
            await asyncio.sleep(0.01)


def problem(response: httpx.Response, status: int, reason: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"urn:goldenlink:reason:{reason}"
    assert body["reason"] == reason
    assert body["status"] == status
    assert body["trace_id"] == response.headers["x-trace-id"] == response.headers["traceparent"][3:35]
    assert body["title"]
    assert body["detail"]
    return body


# -- A transfer


async def test_a_transfer_reaches_finality_and_tells_each_state(client: Client, bench: Bench) -> None:
    response = await client.post(plain("5"))
    assert response.status_code == 202, response.text
    accepted = response.json()
    assert accepted["state"] == "ACCEPTED"
    assert accepted["value_wei"] == "5"
    assert accepted["to"] == RECEIVER
    assert accepted["link"] == f"/v1/links/{accepted['id']}"
    assert response.headers["location"] == f"/v1/transfers/{accepted['id']}"
    assert response.headers["x-trace-id"] == accepted["trace_id"]
    submitted = await client.until(accepted["id"], "SUBMITTED")
    assert submitted["nonce"] == 0
    bench.suite.broadcaster.move(accepted["id"], INCLUDED, SAFE, FINALIZED)
    final = await client.until(accepted["id"], "FINALIZED")
    assert (final["block_number"], final["receipt_status"], final["failure"]) == (12, 1, None)
    assert final["tx_hash"] == "0x" + bench.suite.broadcaster.submissions[accepted["id"]].tx_hash.hex()
    told = [event async for event in client.events(accepted["id"])]
    assert [event["state"] for event in told] == [
        *("ACCEPTED", "BUILT", "SIGNED", "SUBMITTED", "INCLUDED", "SAFE", "FINALIZED")
    ]
    resumed = [event["state"] async for event in client.events(accepted["id"], after=told[3]["event_id"])]
    assert resumed == ["INCLUDED", "SAFE", "FINALIZED"]


async def test_a_queued_submission_stays_signed_until_it_is_sent(client: Client, bench: Bench) -> None:
    bench.suite.broadcaster.queue = True
    transfer_id = (await client.post(plain())).json()["id"]
    assert (await client.until(transfer_id, "SIGNED"))["state"] == "SIGNED"
    async with asyncio.timeout(10):
        while transfer_id not in bench.suite.broadcaster.submissions:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    bench.suite.broadcaster.move(transfer_id, SUBMITTED)
    assert (await client.until(transfer_id, "SUBMITTED"))["state"] == "SUBMITTED"


async def test_a_reorg_returns_the_transfer_to_submitted(client: Client, bench: Bench) -> None:
    transfer_id = (await client.post(plain())).json()["id"]
    await client.until(transfer_id, "SUBMITTED")
    # Told twice is one change.
    bench.suite.broadcaster.move(transfer_id, SUBMITTED, INCLUDED, INCLUDED, SUBMITTED, INCLUDED, SAFE, FINALIZED)
    await client.until(transfer_id, "FINALIZED")
    states = [event["state"] async for event in client.events(transfer_id)]
    assert states[2:] == ["SIGNED", "SUBMITTED", "INCLUDED", "SUBMITTED", "INCLUDED", "SAFE", "FINALIZED"]


async def test_the_requester_reaches_the_signer_and_leaves_the_row(client: Client, bench: Bench) -> None:
    transfer_id = (await client.post(plain(), **{"User-Agent": "teller/1"})).json()["id"]
    await client.until(transfer_id, "SUBMITTED")
    asked = bench.suite.signer.signed[transfer_id].requester
    assert (asked.actor, asked.source_ip) == ("operator-name", "127.0.0.1")
    assert asked.client_fingerprint.startswith("sha256:")
    left = bench.database.server.execute("SELECT count(*) FROM gateway.transfers WHERE personal IS NOT NULL")
    assert left == "0"


async def test_personal_fields_are_not_readable_while_they_wait(client: Client, bench: Bench) -> None:
    bench.suite.signer.script.hold("CheckPolicy")
    await client.post(plain())
    row = bench.database.server.execute("SELECT encode(personal, 'escape') FROM gateway.transfers")
    bench.suite.signer.script.release()
    assert row
    assert "operator-name" not in row
    assert "127.0.0.1" not in row


# -- Failing


async def test_a_denied_transfer_is_recorded_and_holds_no_nonce(client: Client, bench: Bench) -> None:
    transfer_id = (await client.post(plain(DENIED_VALUE_WEI))).json()["id"]
    failed = await client.until(transfer_id, "FAILED")
    assert failed["failure"]["reason"] == "POLICY_DENIED"
    assert failed["failure"]["details"]["rule"] == "value ≤ limit"
    recorded = bench.suite.signer.denials[transfer_id]
    assert recorded.draft_unsigned_tx
    assert recorded.requester.actor == "operator-name"
    assert recorded.traceparent == failed["traceparent"]
    assert bench.suite.txbuilder.reserved == {}


async def test_insufficient_funds_fail_without_a_nonce(client: Client, bench: Bench) -> None:
    transfer_id = (await client.post(plain(POOR_VALUE_WEI))).json()["id"]
    failure = (await client.until(transfer_id, "FAILED"))["failure"]
    assert failure["reason"] == "INSUFFICIENT_FUNDS"
    assert failure["details"] == {"field": "value_wei", "rule": "is within the balance, fee included"}
    assert bench.suite.signer.script.calls["VoidLink"] == 0


async def test_a_signing_refusal_voids_the_link_before_the_nonce_is_given_back(client: Client, bench: Bench) -> None:
    bench.suite.signer.script.refuse("SignTransaction", WalletError(Reason.KEY_NOT_FOUND, "no such key"))
    transfer_id = (await client.post(plain())).json()["id"]
    assert (await client.until(transfer_id, "FAILED"))["failure"]["reason"] == "KEY_NOT_FOUND"
    assert bench.suite.signer.voided == {transfer_id}
    assert bench.suite.txbuilder.released == [transfer_id]


async def test_a_link_that_cannot_be_voided_keeps_its_nonce_and_is_tried_again(client: Client, bench: Bench) -> None:
    down = WalletError(Reason.SERVICE_UNAVAILABLE, "down")
    bench.suite.signer.script.refuse("SignTransaction", WalletError(Reason.KEY_NOT_FOUND, "no such key"))
    bench.suite.signer.script.refuse("VoidLink", down, WalletError(Reason.INTERNAL, "a defect"))
    transfer_id = (await client.post(plain())).json()["id"]
    # The reason of the end is the first one, although the end came later.
    assert (await client.until(transfer_id, "FAILED"))["failure"]["reason"] == "KEY_NOT_FOUND"
    assert bench.suite.signer.script.calls["VoidLink"] == 3
    assert bench.suite.signer.script.calls["SignTransaction"] == 1


async def test_a_signed_transfer_is_never_failed(client: Client, bench: Bench) -> None:
    """The signature was made and its reply turned into a refusal: VoidLink says so, and the transfer goes on."""
    held = bench.suite.signer.script.hold("SignTransaction")
    transfer_id = (await client.post(plain())).json()["id"]
    await held.wait()
    bench.suite.signer.script.refuse("SignTransaction", WalletError(Reason.INTERNAL, "a defect"))
    # The held reply is lost: the first call ends by its deadline's like, a refusal of the next.
    leases = client.gateway.leases  # type: ignore[union-attr]
    await leases.release(client.gateway.dispatcher.owner, [transfer_id])  # type: ignore[union-attr]
    async with asyncio.timeout(10):
        while bench.suite.signer.script.calls["VoidLink"] == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    bench.suite.signer.script.release()
    assert (await client.until(transfer_id, "SUBMITTED"))["failure"] is None
    assert bench.suite.txbuilder.released == []


async def test_a_submission_that_is_refused_is_submitted_again(client: Client, bench: Bench) -> None:
    script = bench.suite.broadcaster.script
    script.refuse("SubmitTransaction", WalletError(Reason.INTERNAL, "a defect"), WalletError(Reason.NOT_FOUND, "?"))
    transfer_id = (await client.post(plain())).json()["id"]
    await client.until(transfer_id, "SUBMITTED")
    assert script.calls["SubmitTransaction"] == 3
    assert bench.suite.signer.script.calls["VoidLink"] == 0


@pytest.mark.parametrize(
    ("peer", "method"),
    [
        ("signer", "CheckPolicy"),
        ("txbuilder", "BuildTransaction"),
        ("signer", "SignTransaction"),
        ("broadcaster", "SubmitTransaction"),
    ],
)
async def test_an_unavailable_peer_is_asked_again(client: Client, bench: Bench, peer: str, method: str) -> None:
    refusals = [WalletError(Reason.SERVICE_UNAVAILABLE, "down"), WalletError(Reason.NONCE_CONFLICT, "restart")]
    script = getattr(bench.suite, peer).script
    script.refuse(method, *refusals)
    transfer_id = (await client.post(plain())).json()["id"]
    await client.until(transfer_id, "SUBMITTED")
    assert script.calls[method] == 3
    assert len(bench.suite.txbuilder.reserved) == 1


# -- Batches


async def test_a_batch_is_carried_by_batch_calls_and_its_items_are_independent(client: Client, bench: Bench) -> None:
    values = ["1", DENIED_VALUE_WEI, POOR_VALUE_WEI, *[str(value) for value in range(1000, 1297)]]
    response = await client.post_batch([plain(value) for value in values])
    assert response.status_code == 202, response.text
    accepted = response.json()["transfers"]
    assert [transfer["value_wei"] for transfer in accepted] == values
    assert len({transfer["trace_id"] for transfer in accepted} | {response.headers["x-trace-id"]}) == 301
    reasons = {accepted[1]["id"]: "POLICY_DENIED", accepted[2]["id"]: "INSUFFICIENT_FUNDS"}
    for transfer in (accepted[1], accepted[2]):
        failure = (await client.until(transfer["id"], "FAILED"))["failure"]
        assert failure["reason"] == reasons[transfer["id"]]
    for place in (0, 199, 299):
        await client.until(accepted[place]["id"], "SUBMITTED")
    counted = bench.database.server.execute("SELECT state, count(*) FROM gateway.transfers GROUP BY 1 ORDER BY 1")
    assert counted.split() == ["FAILED|2", "SUBMITTED|298"]
    assert sorted(built.nonce for built in bench.suite.txbuilder.reserved.values()) == list(range(298))
    # In the order of acceptance.
    nonces = [bench.suite.txbuilder.reserved[t["id"]].nonce for t in accepted if t["id"] not in reasons]
    assert nonces == sorted(nonces)
    assert bench.suite.signer.script.calls["SignTransactions"] <= 3


async def test_a_batch_refused_as_a_whole_is_asked_item_by_item(client: Client, bench: Bench) -> None:
    bench.suite.signer.script.refuse("SignTransactions", WalletError(Reason.INVALID_REQUEST, "one of them"))
    accepted = (await client.post_batch([plain(), plain("2")])).json()["transfers"]
    for transfer in accepted:
        await client.until(transfer["id"], "SUBMITTED")
    assert bench.suite.signer.script.calls["SignTransaction"] == 2


async def test_a_batch_with_bad_items_names_each_and_stores_none(client: Client) -> None:
    items = [plain(), plain("-1"), plain(to="0x12"), plain(nonce=7), plain(value_wei=None)]
    body = problem(await client.post_batch(items), 400, "INVALID_AMOUNT")
    assert {(error["index"], error["field"]) for error in body["errors"]} == {
        *((1, "value_wei"), (2, "to"), (3, "nonce"), (4, "value_wei"))
    }
    items = [plain(), {**plain(), "account_id": "nobody"}, plain()]
    body = problem(await client.post_batch(items), 404, "NOT_FOUND")
    assert [(error["index"], error["field"]) for error in body["errors"]] == [(1, "account_id")]
    bad_call = plain(value_wei=None, call={"signature": "pong(uint256)", "arguments": []})
    body = problem(await client.post_batch([plain(), bad_call, plain(), bad_call]), 400, "INVALID_CALLDATA")
    assert [(error["index"], error["field"]) for error in body["errors"]] == [
        (1, "call.arguments"),
        (3, "call.arguments"),
    ]
    assert (await client.http.get("/v1/transfers")).json()["transfers"] == []


async def test_a_batch_takes_a_thousand_and_no_more(client: Client) -> None:
    problem(await client.post_batch([plain()] * 1001), 400, "INVALID_REQUEST")
    problem(await client.post_batch([]), 400, "INVALID_REQUEST")
    response = await client.post_batch([plain()] * 1000)
    assert response.status_code == 202
    assert len({transfer["id"] for transfer in response.json()["transfers"]}) == 1000


async def test_the_list_pages_through_everything_newest_first(client: Client) -> None:
    accepted = [transfer["id"] for transfer in (await client.post_batch([plain()] * 5)).json()["transfers"]]
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (
            await client.http.get("/v1/transfers", params={"limit": 2, **({"cursor": cursor} if cursor else {})})
        ).json()
        seen += [transfer["id"] for transfer in page["transfers"]]
        cursor = page["next"]
    assert seen == accepted[::-1]
    assert (await client.http.get("/v1/transfers?state=FAILED")).json()["transfers"] == []
    problem(await client.http.get("/v1/transfers?limit=0"), 400, "INVALID_REQUEST")


# -- Idempotency


async def test_the_same_key_and_body_is_the_same_transfer(client: Client, bench: Bench) -> None:
    first = await client.post(plain("7"), key="k-1")
    again = await client.post({"value_wei": "7", "to": RECEIVER, "account_id": "acc"}, key="k-1")
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["x-trace-id"] == first.headers["x-trace-id"]
    # Also while nothing else answers.
    bench.suite.txbuilder.script.refuse("ResolveTransfers", WalletError(Reason.SERVICE_UNAVAILABLE, "down"))
    assert (await client.post(plain("7"), key="k-1")).json()["id"] == first.json()["id"]
    body = problem(await client.post(plain("8"), key="k-1"), 422, "IDEMPOTENCY_KEY_REUSED")
    assert body["errors"][0]["field"] == "Idempotency-Key"
    problem(await client.post_batch([plain("7")], key="k-1"), 422, "IDEMPOTENCY_KEY_REUSED")


async def test_two_requests_at_once_with_one_key_make_one_transfer(client: Client, bench: Bench) -> None:
    answers = await asyncio.gather(*(client.post(plain("7"), key="same") for _ in range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert bench.database.server.execute("SELECT count(*) FROM gateway.transfers") == "1"


async def test_a_key_belongs_to_its_credential(client: Client, bench: Bench) -> None:
    mine = (await client.post(plain(), key="k")).json()["id"]
    other = await bench.token(Role.OPERATOR)
    theirs = (await client.post(plain(), key="k", Authorization=f"Bearer {other}")).json()["id"]
    assert mine != theirs


async def test_a_missing_or_hostile_key_is_refused(client: Client) -> None:
    body = problem(await client.http.post("/v1/transfers", json=plain()), 400, "IDEMPOTENCY_KEY_MISSING")
    assert body["errors"] == [{"field": "Idempotency-Key", "rule": "is required"}]
    problem(await client.post(plain(), key="k" * 256), 400, "INVALID_REQUEST")
    problem(await client.post(plain(), key="two words"), 400, "INVALID_REQUEST")


# -- Bad input


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"to": "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD"}, "to", "INVALID_ADDRESS"),
    ({"to": None}, "to", "INVALID_REQUEST"),
    ({"value_wei": "-1"}, "value_wei", "INVALID_AMOUNT"),
    ({"value_wei": "1.5"}, "value_wei", "INVALID_AMOUNT"),
    ({"value_wei": str(2**256)}, "value_wei", "INVALID_AMOUNT"),
    ({"value_wei": 1}, "value_wei", "INVALID_AMOUNT"),
    ({"value_wei": "01"}, "value_wei", "INVALID_AMOUNT"),
    ({"value_wei": None}, "value_wei", "INVALID_AMOUNT"),
    ({"gas_limit": str(2**64)}, "gas_limit", "INVALID_AMOUNT"),
    ({"max_fee_per_gas_wei": 7}, "max_fee_per_gas_wei", "INVALID_AMOUNT"),
    ({"nonce": 3}, "nonce", "INVALID_REQUEST"),
    ({"surprise": 1}, "surprise", "INVALID_REQUEST"),
    ({"chain_id": "eip155:0"}, "chain_id", "INVALID_REQUEST"),
    ({"chain_id": "eip155:1"}, "chain_id", "INVALID_REQUEST"),
    ({"from": RECEIVER}, "account_id", "INVALID_REQUEST"),
    ({"account_id": "../x"}, "account_id", "INVALID_REQUEST"),
    ({"account_id": "nobody"}, "account_id", "NOT_FOUND"),
    ({"data": "0xabc"}, "data", "INVALID_REQUEST"),
    ({"data": "0x" + "00" * (128 * 1024 + 1)}, "data", "INVALID_CALLDATA"),
    ({"data": "0x", "call": {"signature": "ping()", "arguments": []}}, "data", "INVALID_REQUEST"),
    ({"call": {"signature": "ping()", "arguments": [2**60]}}, "call.arguments", "INVALID_CALLDATA"),
    ({"call": {"signature": "pong(uint256)", "arguments": []}}, "call.arguments", "INVALID_CALLDATA"),
    ({"erc20": {"token": RECEIVER, "amount": 5}}, "erc20.amount", "INVALID_AMOUNT"),
    ({"type": "blob"}, "type", "INVALID_REQUEST"),
]


async def test_a_bad_field_is_named_with_its_rule(client: Client) -> None:
    for changes, field, reason in BAD_FIELDS:
        fields = {**plain(), **changes}
        response = await client.post({name: value for name, value in fields.items() if value is not None})
        body = problem(response, 404 if reason == "NOT_FOUND" else 400, reason)
        assert field in [error["field"] for error in body["errors"]], (changes, body)
        assert all(error["rule"] and "index" not in error for error in body["errors"])
    assert (await client.http.get("/v1/transfers")).json()["transfers"] == []


async def test_an_unknown_chain_is_refused_before_acceptance(client: Client, bench: Bench) -> None:
    bench.suite.keys.add_account("stray", UNKNOWN_CHAIN)
    body = problem(await client.post({**plain(), "account_id": "stray"}), 400, "UNKNOWN_CHAIN")
    assert body["errors"][0]["field"] == "chain_id"


async def test_the_nonce_is_refused_by_name(client: Client) -> None:
    body = problem(await client.post(plain(nonce="3")), 400, "INVALID_REQUEST")
    assert "the suite assigns the nonce" in body["errors"][0]["rule"]


NO_OBJECTS = [
    "",
    "{",
    "[]",
    "null",
    '{"value_wei": "1", "value_wei": "2"}',
    "[" * 100_000,
    '{"value_wei": NaN}',
    "\xff",
]


async def test_what_is_no_json_object_is_a_problem(client: Client) -> None:
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    for text in NO_OBJECTS:
        response = await client.http.post("/v1/transfers", content=text.encode("latin-1"), headers=headers)
        problem(response, 400, "INVALID_REQUEST")


async def test_a_body_over_the_limit_is_refused_unread(client: Client) -> None:
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    response = await client.http.post("/v1/transfers", content=b" " * (1024 * 1024 + 1), headers=headers)
    body = problem(response, 413, "PAYLOAD_TOO_LARGE")
    assert body["errors"][0]["field"] == "body"
    assert response.headers["connection"] == "close"
    # Announced, never sent: the answer does not wait for it.
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"POST /v1/transfers HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 413")
    writer.close()
    # Not announced: counted.
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"POST /v1/transfers HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    writer.write(chunk * 17)
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 413")
    writer.close()


async def test_every_refusal_of_the_framework_is_a_problem(client: Client) -> None:
    problem(await client.http.get("/nowhere"), 404, "NOT_FOUND")
    response = await client.http.delete("/v1/transfers")
    problem(response, 405, "INVALID_REQUEST")
    assert response.headers["allow"]
    problem(await client.http.get("/v1/transfers/t-unknown"), 404, "NOT_FOUND")
    problem(await client.http.get("/v1/transfers/t-unknown/events"), 404, "NOT_FOUND")
    problem(await client.http.get("/v1/traces/xyz"), 400, "INVALID_REQUEST")
    transfer_id = (await client.post(plain())).json()["id"]
    response = await client.http.get(f"/v1/transfers/{transfer_id}/events", headers={"Last-Event-ID": "x"})
    problem(response, 400, "INVALID_REQUEST")


async def test_an_unexpected_error_is_a_problem_without_its_text(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(client.gateway.store, "page", fail)  # type: ignore[union-attr]
    response = await client.http.get("/v1/transfers")
    problem(response, 500, "INTERNAL")
    assert "a secret" not in response.text


# -- Who asks


async def test_tokens_expire_are_revoked_and_carry_a_role(client: Client, bench: Bench) -> None:
    async def status(token: str, method: str = "GET", path: str = "/v1/transfers") -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "k"}
        response = await client.http.request(method, path, json=plain() if method == "POST" else None, headers=headers)
        return response.status_code, response.json().get("reason", "")

    expired = await bench.token(Role.OPERATOR, expires_in_days=0)
    assert await status(expired) == (401, "TOKEN_EXPIRED")
    auditor, approver = await bench.token(Role.AUDITOR), await bench.token(Role.APPROVER)
    assert await status(auditor) == (200, "")
    assert await status(auditor, "POST") == (403, "ROLE_REQUIRED")
    assert await status(approver, "POST") == (403, "ROLE_REQUIRED")
    assert await status(auditor, path="/v1/wallets/treasury") == (403, "ROLE_REQUIRED")
    assert await status(approver, path="/v1/wallets/treasury") == (404, "NOT_FOUND")
    assert await status("gl_0000000000000000_" + "A" * 43) == (401, "UNAUTHENTICATED")
    assert await status(auditor[:-1] + ("A" if auditor[-1] != "A" else "B")) == (401, "UNAUTHENTICATED")
    response = await client.http.get("/v1/transfers", headers={"Authorization": "Basic x"})
    problem(response, 401, "UNAUTHENTICATED")
    assert response.headers["www-authenticate"] == "Bearer"
    stored = bench.database.server.execute(
        "SELECT string_agg(encode(secret_sha256, 'hex'), ' ') FROM gateway.credentials"
    )
    assert auditor.split("_", 2)[2].encode().hex() not in stored
    bench.database.server.execute("UPDATE gateway.credentials SET revoked_at = now()")
    async with bench.gateway() as fresh:
        response = await fresh.http.get("/v1/transfers")
        problem(response, 401, "UNAUTHENTICATED")


async def test_the_serving_role_cannot_mint_a_token(bench: Bench) -> None:
    for statement in (
        "INSERT INTO gateway.credentials VALUES ('x', 'x', 'operator', '\\x', now())",
        "DELETE FROM gateway.transfers",
    ):
        allowed = bench.database.server.execute(
            "DO $$ BEGIN SET ROLE gateway; "
            + statement
            + "; EXCEPTION WHEN insufficient_privilege THEN RESET ROLE; RAISE NOTICE 'refused'; RETURN; END $$;"
            " SELECT current_user"
        )
        assert allowed == "postgres"


# -- Traces


async def test_a_single_transfer_adopts_the_callers_trace_and_is_always_sampled(
    client: Client, bench: Bench, spans: InMemorySpanExporter
) -> None:
    response = await client.post(plain(), traceparent=f"00-{TRACE}-00f067aa0ba902b7-00")
    transfer = response.json()
    assert transfer["trace_id"] == response.headers["x-trace-id"] == TRACE
    assert transfer["traceparent"].endswith("-01")
    await client.until(transfer["id"], "SUBMITTED")
    assert bench.suite.signer.signed[transfer["id"]].traceparent == transfer["traceparent"]
    await ended(spans, "gateway.saga")
    named = {span.name: span for span in spans.get_finished_spans() if span.context.trace_id == int(TRACE, 16)}
    tree = {name: span.parent.span_id if span.parent else 0 for name, span in named.items()}
    root = named["POST /v1/transfers"]
    assert tree["POST /v1/transfers"] == 0x00F067AA0BA902B7
    assert transfer["traceparent"][36:52] == f"{root.context.span_id:016x}"
    assert tree["gateway.saga"] == root.context.span_id
    for call in (
        "Signer/CheckPolicy",
        "TxBuilder/BuildTransaction",
        "Signer/SignTransaction",
        "Broadcaster/SubmitTransaction",
    ):
        assert any(span.name == f"wallet.v1.{call}" for span in spans.get_finished_spans())
    assert root.attributes is not None
    assert root.attributes["http.route"] == "/v1/transfers"
    assert root.attributes["http.response.status_code"] == 202


async def test_without_tracing_the_trace_id_is_adopted_and_stored_as_sampled(client: Client) -> None:
    transfer = (await client.post(plain(), traceparent=f"00-{TRACE}-00f067aa0ba902b7-00")).json()
    assert transfer["trace_id"] == TRACE
    assert transfer["traceparent"].endswith("-01")
    assert transfer["traceparent"][36:52] != "00f067aa0ba902b7"


async def test_other_requests_follow_the_callers_flag(client: Client, spans: InMemorySpanExporter) -> None:
    response = await client.http.get("/v1/transfers", headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-00"})
    assert response.headers["x-trace-id"] == TRACE
    assert response.headers["traceparent"].endswith("-00")
    assert not [span for span in spans.get_finished_spans() if span.name.startswith("GET")]


async def test_a_batch_item_has_a_trace_of_its_own_linked_to_the_requests(
    client: Client, spans: InMemorySpanExporter
) -> None:
    response = await client.post_batch([plain(), plain()], traceparent=f"00-{TRACE}-00f067aa0ba902b7-00")
    first = response.json()["transfers"][0]
    assert first["trace_id"] != TRACE
    await client.until(first["id"], "SUBMITTED")
    roots = [span for span in spans.get_finished_spans() if span.name == "gateway.transfer"]
    assert [span.links[0].context.trace_id for span in roots] == [int(TRACE, 16)] * 2
    assert f"{roots[0].context.trace_id:032x}" == first["trace_id"]
    group = await ended(spans, "gateway.saga_group")
    assert {link.context.trace_id for link in group.links} == {span.context.trace_id for span in roots}


HOSTILE_TRACEPARENTS = [
    "",
    "x",
    f"ff-{TRACE}-00f067aa0ba902b7-01",
    f"00-{'0' * 32}-00f067aa0ba902b7-01",
    f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
    f"00-{TRACE}-00f067aa0ba902b7-01-extra",
    "00-" + "a" * 5000,
]


async def test_a_hostile_traceparent_starts_a_fresh_trace(client: Client) -> None:
    for hostile in HOSTILE_TRACEPARENTS:
        response = await client.post(plain(), traceparent=hostile)
        assert response.status_code == 202
        assert response.json()["trace_id"] not in (TRACE, "0" * 32)
        assert len(response.headers["traceparent"]) == 55


async def test_a_refusal_stands_in_the_trace(client: Client, spans: InMemorySpanExporter) -> None:
    refused = await client.post(plain("-1"))
    transfer_id = (await client.post(plain(DENIED_VALUE_WEI))).json()["id"]
    denied = await client.until(transfer_id, "FAILED")
    await ended(spans, "gateway.saga")
    by_trace: dict[str, dict[str, Any]] = {}
    for span in spans.get_finished_spans():
        by_trace.setdefault(f"{span.context.trace_id:032x}", {})[span.name] = dict(span.attributes or {})
    assert by_trace[refused.headers["x-trace-id"]]["POST /v1/transfers"]["error.type"] == "INVALID_AMOUNT"
    assert by_trace[denied["trace_id"]]["gateway.failure"]["error.type"] == "POLICY_DENIED"


async def test_a_request_id_comes_back_when_it_is_visible_ascii(client: Client) -> None:
    response = await client.http.get("/healthz", headers={"X-Request-ID": "order-17"})
    assert response.headers["x-request-id"] == "order-17"
    assert len(response.headers["x-trace-id"]) == 32
    response = await client.http.get("/healthz", headers={"X-Request-ID": "x" * 129})
    assert "x-request-id" not in response.headers


# -- The rest of the API


async def test_wallets_and_accounts(client: Client) -> None:
    response = await client.http.post("/v1/wallets", json={"id": "treasury", "name": "Treasury"})
    assert response.status_code == 201, response.text
    assert response.json()["encrypted_recovery"] is None
    generated = (await client.http.post("/v1/wallets", json={"recovery_recipient": "0x" + "ab" * 32})).json()
    assert generated["id"].startswith("w-")
    assert generated["encrypted_recovery"] == "0x" + b"sealed".hex()
    account = (await client.http.post("/v1/wallets/treasury/accounts", json={"chain_id": "eip155:31337"})).json()
    assert account["account"] == f"eip155:31337:{account['address'].lower()}"
    assert (await client.http.get(f"/v1/accounts/{account['id']}")).json() == account
    response = await client.post(
        {"from": account["address"], "chain_id": "eip155:31337", "to": RECEIVER, "value_wei": "1"}
    )
    assert response.json()["account_id"] == account["id"]
    problem(await client.http.post("/v1/wallets/treasury/accounts", json={}), 400, "INVALID_REQUEST")
    problem(await client.http.post("/v1/wallets/none/accounts", json={"chain_id": "eip155:1"}), 404, "NOT_FOUND")


async def test_links_bundles_traces_and_policy(client: Client, bench: Bench) -> None:
    leaf = evidence_pb2.LinkEntry(index=4, kind="intent", leaf=b"{}", body=b'{"a":1}', salt=bytes(32))
    bench.suite.evidence.links["t-1"] = evidence_pb2.Link(
        link_id="t-1", state="BUILT", entries=[leaf], checkpoint_size=5
    )
    link = (await client.http.get("/v1/links/t-1")).json()
    assert (link["state"], link["entries"][0]["body"], link["entries"][0]["provable"]) == ("BUILT", {"a": 1}, True)
    document = b'{"format":"goldenlink.bundle.v1",  "odd": "spacing \xc3\xa9"}\n'
    bench.suite.evidence.bundles["t-1"] = document
    response = await client.http.get("/v1/links/t-1/bundle")
    assert response.content == document
    assert bench.suite.evidence.waits_ms == [5000]
    problem(await client.http.get("/v1/links/t-2/bundle"), 404, "NOT_FOUND")
    stored = ResourceSpans()
    span = stored.scope_spans.add().spans.add(
        name="x", trace_id=bytes.fromhex(TRACE), span_id=bytes(7) + b"\x01", kind=2
    )
    span.status.code = 2
    bench.suite.tracestore.add(ExportTraceServiceRequest(resource_spans=[stored]))
    (found,) = (await client.http.get(f"/v1/traces/{TRACE}")).json()["resourceSpans"]
    assert found["scopeSpans"][0]["spans"][0] == {
        "name": "x",
        "traceId": TRACE,
        "spanId": "0000000000000001",
        "kind": 2,
        "status": {"code": 2},
    }
    problem(await client.http.get(f"/v1/traces/{'a' * 32}"), 404, "NOT_FOUND")
    assert (await client.http.get("/v1/policy")).json()["document"] == "version: 3\n"


async def test_status_says_what_is_missing(client: Client, bench: Bench) -> None:
    status = (await client.http.get("/v1/status")).json()
    assert (status["can_sign"], status["missing"]) == (True, [])
    bench.suite.keys.missing = ["keys: its token is locked."]
    assert (await client.http.get("/v1/status")).json()["can_sign"] is False
    bench.suite.keys.missing = []
    bench.suite.signer.missing = ["The token is locked."]
    # The replica that appends, and then any.
    down = WalletError(Reason.SERVICE_UNAVAILABLE, "down")
    bench.suite.evidence.script.refuse("GetEvidenceStatus", down, down)
    status = (await client.http.get("/v1/status")).json()
    assert status["can_sign"] is False
    assert status["missing"] == ["The token is locked.", "evidence does not answer (SERVICE_UNAVAILABLE)."]
    assert status["services"]["evidence"]["answering"] is False
    assert (await client.http.get("/readyz")).status_code == 200


async def test_a_peer_that_is_down_refuses_the_request_and_stores_nothing(client: Client, bench: Bench) -> None:
    bench.suite.txbuilder.script.refuse("ResolveTransfers", WalletError(Reason.NODE_UNAVAILABLE, "too few nodes"))
    response = await client.post(plain(), key="later")
    problem(response, 503, "NODE_UNAVAILABLE")
    assert response.headers["retry-after"] == "1"
    assert (await client.post(plain(), key="later")).status_code == 202


async def test_openapi_is_complete(client: Client) -> None:
    document = (await client.http.get("/openapi.json")).json()
    assert (await client.http.get("/docs")).status_code == 200
    assert {*document["paths"]} == {
        *("/v1/wallets", "/v1/wallets/{id}", "/v1/wallets/{id}/accounts", "/v1/accounts/{id}", "/v1/transfers"),
        *("/v1/transfers:batch", "/v1/transfers/{id}", "/v1/transfers/{id}/events", "/v1/links/{id}"),
        *("/v1/links/{id}/bundle", "/v1/traces/{trace_id}", "/v1/policy", "/v1/status", "/healthz", "/readyz"),
        *("/v1/transfers/{id}:cancel", "/v1/transfers/{id}:approve", "/v1/transfers/{id}:reject"),
        *("/v1/transfers/{id}/approvals", "/v1/policies", "/v1/policies/{sha256}:approve"),
        "/v1/policies/{sha256}:reject",
    }
    post = document["paths"]["/v1/transfers"]["post"]
    assert post["responses"]["202"]["content"]["application/json"]["schema"]["$ref"].endswith("/TransferView")
    assert "application/problem+json" in post["responses"]["default"]["content"]
    assert post["security"] == [{"HTTPBearer": []}]
    assert [p["required"] for p in post["parameters"] if p["name"] == "Idempotency-Key"] == [True]
    text = json.dumps(document)
    missing = [
        part.split('"')[0]
        for part in text.split("#/components/schemas/")[1:]
        if part.split('"')[0] not in document["components"]["schemas"]
    ]
    assert missing == []
