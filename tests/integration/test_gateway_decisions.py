"""Approvals of transfers and changes of the policy, by people whose words are entries of the log."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from protos.wallet.v1 import signer_pb2
from services.core.canonical import parse_canonical
from services.core.errors import Reason, WalletError
from services.gateway.credentials import Role
from tests.fakes.signer import APPROVED_VALUE_WEI, DENIED_VALUE_WEI
from tests.integration.gateway_harness import DEADLINE_S, Bench, Client, plain

BIG = str(APPROVED_VALUE_WEI)


@pytest.fixture
def bench(bench: Bench) -> Bench:
    bench.suite.signer.approval = signer_pb2.ApprovalRule(count=2, valid_s=3600)
    return bench


class People:
    """Clients by the names of their credentials."""

    def __init__(self, bench: Bench, client: Client) -> None:
        self._bench = bench
        self._client = client
        self._tokens: dict[str, str] = {}

    async def post(
        self, name: str, path: str, body: Any = None, role: Role = Role.APPROVER, content: bytes | None = None
    ) -> httpx.Response:
        if name not in self._tokens:
            self._tokens[name] = await self._bench.token(role, name=name)
        headers = {"Authorization": f"Bearer {self._tokens[name]}"}
        return await self._client.http.post(path, json=body, content=content, headers=headers)


@pytest.fixture
def people(bench: Bench, client: Client) -> People:
    return People(bench, client)


async def awaiting(client: Client, value_wei: str = BIG) -> dict[str, Any]:
    transfer_id = (await client.post(plain(value_wei))).json()["id"]
    return await client.until(transfer_id, "AWAITING_APPROVAL")


def refusal(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    return response.status_code, response.json()["reason"]


@asynccontextmanager
async def log_down(bench: Bench) -> AsyncIterator[None]:
    """The log refuses more calls than the test makes; afterwards it takes them."""
    script = bench.suite.evidence.script
    script.refuse("AppendEntries", *[WalletError(Reason.SERVICE_UNAVAILABLE, "down")] * 1_000)
    yield
    script._refusals["AppendEntries"].clear()


# -- Approving


async def test_two_approvals_let_a_transfer_go_on(client: Client, bench: Bench, people: People) -> None:
    waiting = await awaiting(client)
    # No nonce is held meanwhile.
    assert bench.suite.txbuilder.reserved == {}
    assert waiting["approval"]["count"] == 2
    path, terms = f"/v1/transfers/{waiting['id']}", {"terms_sha256": waiting["terms_sha256"]}
    first = await people.post("alice", f"{path}:approve", terms)
    assert first.status_code == 200, first.text
    assert (first.json()["approver"], first.json()["evidence_index"]) == ("alice", 0)
    # The same again is the same answer, and no second approval.
    assert (await people.post("alice", f"{path}:approve", terms)).json() == first.json()
    await client.until_idle()
    assert (await client.transfer(waiting["id"]))["state"] == "AWAITING_APPROVAL"
    assert (await people.post("bob", f"{path}:approve", terms)).status_code == 200
    await client.until(waiting["id"], "SUBMITTED")
    told = [event["state"] async for event in client.events(waiting["id"], until="SUBMITTED")]
    assert told == ["ACCEPTED", "AWAITING_APPROVAL", "BUILT", "SIGNED", "SUBMITTED"]
    entries = bench.suite.evidence.appended
    assert [(entry.link_id, entry.entry_id, entry.kind) for entry in entries] == [
        (f"{waiting['id']}:approval", "approval:alice", "policy"),
        (f"{waiting['id']}:approval", "approval:bob", "policy"),
    ]
    assert {entry.trace_id for entry in entries} == {waiting["trace_id"]}
    body = parse_canonical(entries[0].body)
    assert body.pop("at") < body.pop("expires_at")
    assert body == {
        "act": "approval",
        "approver": "alice",
        "decision": "approve",
        "terms_sha256": waiting["terms_sha256"],
        "transfer_id": waiting["id"],
    }
    shown = (await client.http.get(f"{path}/approvals")).json()
    assert [(one["approver"], one["decision"]) for one in shown["approvals"]] == [
        ("alice", "approve"),
        ("bob", "approve"),
    ]
    assert refusal(await people.post("carol", f"{path}:approve", terms)) == (409, "TRANSFER_CLOSED")


async def test_terms_are_hashed_as_the_signer_hashes_them(client: Client, bench: Bench) -> None:
    waiting = await awaiting(client)
    document = {
        "chain_id": waiting["chain_id"],
        "data": "0x",
        "from": waiting["account"].split(":")[2],
        "to": waiting["to"].lower(),
        "value_wei": BIG,
    }
    expected = hashlib.sha256(json.dumps(document, separators=(",", ":"), sort_keys=True).encode()).hexdigest()
    assert waiting["terms_sha256"] == "0x" + expected


async def test_a_rejection_fails_the_transfer(client: Client, bench: Bench, people: People) -> None:
    waiting = await awaiting(client)
    path, terms = f"/v1/transfers/{waiting['id']}", {"terms_sha256": waiting["terms_sha256"]}
    rejected = await people.post("alice", f"{path}:reject", terms)
    assert (rejected.status_code, rejected.json()["decision"]) == (200, "reject")
    failed = await client.until(waiting["id"], "FAILED")
    assert failed["failure"]["reason"] == "APPROVAL_REJECTED"
    assert refusal(await people.post("alice", f"{path}:approve", terms)) == (409, "ALREADY_EXISTS")
    assert bench.suite.signer.signed == {}


async def test_who_may_not_approve_is_told_why(client: Client, bench: Bench, people: People) -> None:
    bench.suite.signer.approval = signer_pb2.ApprovalRule(count=1, valid_s=3600, approvers=["bob", "operator-name"])
    waiting = await awaiting(client)
    path, terms = f"/v1/transfers/{waiting['id']}:approve", {"terms_sha256": waiting["terms_sha256"]}
    # The requester, under a second credential of the same name.
    assert refusal(await people.post("operator-name", path, terms)) == (403, "SELF_APPROVAL")
    assert refusal(await people.post("mallory", path, terms)) == (403, "ROLE_REQUIRED")
    assert refusal(await people.post("olga", path, terms, Role.OPERATOR)) == (403, "ROLE_REQUIRED")
    altered = {"terms_sha256": "0x" + "00" * 32}
    assert refusal(await people.post("bob", path, altered)) == (409, "APPROVAL_MISMATCH")
    assert refusal(await people.post("bob", path, {})) == (400, "INVALID_REQUEST")
    assert refusal(await people.post("bob", "/v1/transfers/t-unknown:approve", terms)) == (404, "NOT_FOUND")
    small = (await client.post(plain("1"))).json()
    assert refusal(await people.post("bob", f"/v1/transfers/{small['id']}:approve", terms)) == (409, "TRANSFER_CLOSED")
    assert bench.suite.evidence.appended == []
    assert (await people.post("bob", path, terms)).status_code == 200
    await client.until(waiting["id"], "SUBMITTED")


async def test_approvals_that_do_not_come_in_time_fail_the_transfer(
    client: Client, bench: Bench, people: People
) -> None:
    bench.suite.signer.approval = signer_pb2.ApprovalRule(count=1, valid_s=1)
    waiting = await awaiting(client)
    failed = await client.until(waiting["id"], "FAILED")
    assert failed["failure"]["reason"] == "APPROVAL_EXPIRED"
    terms = {"terms_sha256": waiting["terms_sha256"]}
    late = await people.post("alice", f"/v1/transfers/{waiting['id']}:approve", terms)
    assert refusal(late) == (409, "APPROVAL_EXPIRED")
    assert bench.suite.evidence.appended == []


async def test_an_approval_that_the_log_did_not_take_is_entered_later_and_counts(
    client: Client, bench: Bench, people: People
) -> None:
    bench.suite.signer.approval = signer_pb2.ApprovalRule(count=1, valid_s=3600)
    waiting = await awaiting(client)
    terms = {"terms_sha256": waiting["terms_sha256"]}
    async with log_down(bench):
        response = await people.post("alice", f"/v1/transfers/{waiting['id']}:approve", terms)
        assert refusal(response) == (503, "EVIDENCE_UNAVAILABLE")
        # Without an entry it counts for nothing.
        await asyncio.sleep(0.5)
        assert bench.suite.txbuilder.reserved == {}
    await client.until(waiting["id"], "SUBMITTED")
    assert [entry.entry_id for entry in bench.suite.evidence.appended] == ["approval:alice"]


async def test_a_policy_that_wants_more_meanwhile_is_asked_again(client: Client, bench: Bench, people: People) -> None:
    bench.suite.signer.approval = signer_pb2.ApprovalRule(count=1, valid_s=3600)
    waiting = await awaiting(client)
    bench.suite.signer.approval = signer_pb2.ApprovalRule(count=2, valid_s=3600)
    path, terms = f"/v1/transfers/{waiting['id']}:approve", {"terms_sha256": waiting["terms_sha256"]}
    await people.post("alice", path, terms)
    more = await client.when(waiting["id"], lambda view: view["approval"]["count"] == 2)
    assert (more["state"], more["approval"]["expires_at"]) == (
        "AWAITING_APPROVAL",
        waiting["approval"]["expires_at"],
    )
    await people.post("bob", path, terms)
    await client.until(waiting["id"], "SUBMITTED")


async def test_a_policy_that_denies_meanwhile_is_recorded(client: Client, bench: Bench, people: People) -> None:
    transfer = await awaiting(client, str(int(DENIED_VALUE_WEI) - 1))
    bench.suite.signer.denied_value_wei = int(BIG)
    for name in ("alice", "bob"):
        terms = {"terms_sha256": transfer["terms_sha256"]}
        await people.post(name, f"/v1/transfers/{transfer['id']}:approve", terms)
    assert (await client.until(transfer["id"], "FAILED"))["failure"]["reason"] == "POLICY_DENIED"
    assert transfer["id"] in bench.suite.signer.denials


async def test_a_signer_that_misses_the_approvals_signs_nothing(client: Client, bench: Bench) -> None:
    """The policy began to ask for them after it was asked."""
    bench.suite.signer.script.refuse("SignTransaction", WalletError(Reason.APPROVAL_REQUIRED, "needs two"))
    transfer_id = (await client.post(plain("1"))).json()["id"]
    assert (await client.until(transfer_id, "FAILED"))["failure"]["reason"] == "APPROVAL_REQUIRED"
    assert bench.suite.signer.voided == {transfer_id}
    assert bench.suite.txbuilder.released == [transfer_id]


async def test_a_batch_waits_item_by_item(client: Client, bench: Bench, people: People) -> None:
    accepted = (await client.post_batch([plain("1"), plain(BIG), plain("2")])).json()["transfers"]
    for place in (0, 2):
        await client.until(accepted[place]["id"], "SUBMITTED")
    waiting = await client.transfer(accepted[1]["id"])
    assert waiting["state"] == "AWAITING_APPROVAL"
    nonces = [bench.suite.txbuilder.reserved[accepted[place]["id"]].nonce for place in (0, 2)]
    assert nonces == [0, 1]


async def test_a_waiting_transfer_is_cancelled(client: Client, bench: Bench) -> None:
    waiting = await awaiting(client)
    cancelled = (await client.http.post(f"/v1/transfers/{waiting['id']}:cancel")).json()
    assert (cancelled["state"], cancelled["failure"]["reason"]) == ("FAILED", "TRANSFER_CANCELLED")


# -- Changing the policy

DOCUMENT = "version: 4"
NAME = "0x" + hashlib.sha256(DOCUMENT.encode()).hexdigest()


async def test_two_approvers_besides_the_proposer_change_the_policy(
    client: Client, bench: Bench, people: People
) -> None:
    proposed = await people.post("alice", "/v1/policies", {"document": DOCUMENT})
    assert (proposed.status_code, proposed.json()["state"], proposed.json()["sha256"]) == (201, "PROPOSED", NAME)
    assert (await people.post("alice", "/v1/policies", {"document": DOCUMENT})).json() == proposed.json()
    path = f"/v1/policies/{NAME}:approve"
    assert refusal(await people.post("alice", path)) == (403, "SELF_APPROVAL")
    first = (await people.post("bob", path)).json()
    assert first["policy"]["state"] == "PROPOSED"
    assert (await people.post("bob", path)).json() == first
    assert refusal(await people.post("bob", f"/v1/policies/{NAME}:reject")) == (409, "ALREADY_EXISTS")
    assert bench.suite.signer.activations == []
    second = (await people.post("carol", path)).json()
    assert second["policy"]["state"] == "IN_FORCE"
    assert [bytes(one.document) for one in bench.suite.signer.activations] == [DOCUMENT.encode()]
    link_id = f"policy:{NAME[2:34]}:approval"
    assert [(one.link_id, one.entry_id) for one in bench.suite.evidence.appended] == [
        (link_id, "approval:bob"),
        (link_id, "approval:carol"),
    ]
    body = parse_canonical(bench.suite.evidence.appended[0].body)
    assert (body["policy_sha256"], body["proposer"], body["decision"]) == (NAME, "alice", "approve")
    assert (await client.http.get("/v1/policy")).json()["version"] == 4
    listed = (await client.http.get("/v1/policies")).json()["policies"]
    assert [(one["sha256"], one["state"]) for one in listed] == [(NAME, "IN_FORCE")]
    assert refusal(await people.post("dora", path)) == (409, "TRANSFER_CLOSED")


async def test_a_rejected_policy_is_never_put_in_force(bench: Bench, people: People) -> None:
    await people.post("alice", "/v1/policies", {"document": DOCUMENT})
    assert (await people.post("bob", f"/v1/policies/{NAME}:reject")).json()["policy"]["state"] == "REJECTED"
    assert refusal(await people.post("carol", f"/v1/policies/{NAME}:approve")) == (409, "APPROVAL_REJECTED")
    assert bench.suite.signer.activations == []


async def test_a_document_that_is_no_policy_is_refused(people: People, client: Client) -> None:
    bad = await people.post("alice", "/v1/policies", {"document": "version: none"})
    assert refusal(bad) == (400, "INVALID_REQUEST")
    assert bad.json()["errors"] == [{"field": "policy.version", "rule": "is a whole number"}]
    assert refusal(await people.post("alice", "/v1/policies", {"document": "version: 3"})) == (409, "ALREADY_EXISTS")
    assert refusal(await people.post("bob", f"/v1/policies/{NAME}:approve")) == (404, "NOT_FOUND")
    half_a_character = await people.post("alice", "/v1/policies", content=b'{"document": "a\\ud800"}')
    assert refusal(half_a_character) == (400, "INVALID_REQUEST")
    assert (await client.http.get("/v1/policies")).json() == {"policies": []}


async def test_a_change_that_was_interrupted_is_carried_out(bench: Bench) -> None:
    """The gateway ends while it asks the signer; another one goes on."""
    async with bench.gateway() as client:
        people = People(bench, client)
        await people.post("alice", "/v1/policies", {"document": DOCUMENT})
        await people.post("bob", f"/v1/policies/{NAME}:approve")
        down = WalletError(Reason.SERVICE_UNAVAILABLE, "down")
        bench.suite.signer.script.refuse("ActivatePolicy", down)
        second = (await people.post("carol", f"/v1/policies/{NAME}:approve")).json()
        assert second["policy"]["state"] == "APPROVED"
    async with bench.gateway() as client, asyncio.timeout(DEADLINE_S):
        while (await client.http.get("/v1/policy")).json()["version"] != 4:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_policy_that_the_signer_refuses_says_why(people: People, bench: Bench) -> None:
    await people.post("alice", "/v1/policies", {"document": DOCUMENT})
    await people.post("bob", f"/v1/policies/{NAME}:approve")
    bench.suite.signer.script.refuse("ActivatePolicy", WalletError(Reason.ALREADY_EXISTS, "a higher version"))
    refused = (await people.post("carol", f"/v1/policies/{NAME}:approve")).json()["policy"]
    assert (refused["state"], refused["failure"]["reason"]) == ("REFUSED", "ALREADY_EXISTS")
