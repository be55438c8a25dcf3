"""What becomes of transfers that the chain does not mine, or that people are to decide about: the real services.

A stack of its own, whose chain can be stopped, whose broadcaster has little patience, and whose policy wants approvals.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.dependencies import run_to_end
from tests.integration.suite.running_suite import Suite, until
from tools.stack.options import External, StackOptions
from tools.stack.stack import Stack

# Above it two approvers are asked for.
ABOVE_WEI = 10**18
_POLICY = """
version: {version}
name: never lost
rules:
  chains:
    allow: ["eip155:31337"]
  destinations:
    allow: any
  assets:
    "eip155:31337/native":
      per_transfer: "{limit}"
      approvals: {{above: "{above}", count: {count}, valid_s: 600}}
"""


def policy(version: int, count: int = 2) -> str:
    return _POLICY.format(version=version, limit=100 * ABOVE_WEI, above=ABOVE_WEI, count=count)


@pytest.fixture(scope="module")
def patient() -> Iterator[Suite]:
    directory = Path(tempfile.mkdtemp(prefix="goldenlink-never-lost-"))
    directory.chmod(0o755)
    policy_file = directory / "policy.yaml"
    policy_file.write_text(policy(2), encoding="utf-8")
    options = StackOptions(
        block_time_s=1,
        supervised=True,
        tracing=False,
        policy_file=policy_file,
        environment={
            "broadcaster": {"WALLET_STALL_AFTER_S": "1", "WALLET_NONCE_CHECK_S": "0.5"},
            "gateway": {"WALLET_GAP_AFTER_S": "1"},
        },
        external=External(),
    )
    stack = Stack(directory / "stack", options)
    try:
        run_to_end(stack.start())
        try:
            yield Suite(stack)
        finally:
            run_to_end(stack.stop())
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def account(patient: Suite) -> dict[str, Any]:
    return patient.make_account(1_000)


@contextmanager
def nothing_mined(suite: Suite) -> Iterator[None]:
    suite.chain.call("evm_setIntervalMining", 0)
    try:
        yield
    finally:
        suite.chain.call("evm_setIntervalMining", 1)


def when(suite: Suite, transfer_id: str, found: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        view = suite.transfer(transfer_id)
        return view if found(view) else None

    return until(look, f"{transfer_id} is as wanted")


def intents(suite: Suite, transfer: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry["body"] for entry in suite.link(transfer)["entries"] if entry["kind"] == "intent"]


@pytest.fixture(scope="module")
def approvers(patient: Suite) -> dict[str, httpx.Client]:
    return {name: patient.client(patient.make_token(name, "approver")) for name in ("alice", "bob", "carol")}


def test_a_stalled_transfer_is_bumped_and_mined(patient: Suite, account: dict[str, Any]) -> None:
    with nothing_mined(patient):
        sent = patient.send(account)
        bumped = when(patient, sent["id"], lambda view: view["replacements"] >= 1)
        assert bumped["state"] == "SUBMITTED"
    ended = patient.until_state(sent)
    assert ended["state"] == "FINALIZED"
    bodies = intents(patient, sent)
    assert len(bodies) >= 2
    assert len({body["signing_digest"] for body in bodies}) == len(bodies)
    assert patient.proves(sent).accepted


def test_a_cancelled_transfer_is_not_mined(patient: Suite, account: dict[str, Any]) -> None:
    with nothing_mined(patient):
        sent = patient.send(account)
        patient.until_state(sent, "SUBMITTED")
        reply = patient.operator.post(f"/v1/transfers/{sent['id']}:cancel")
        assert reply.status_code == 202, reply.text
        link = reply.json()
        assert link["supersedes"] == sent["id"]
        patient.until_state(link, "SUBMITTED")
    assert patient.until_state(link)["state"] == "FINALIZED"
    failed = patient.until_state(sent)
    assert (failed["state"], failed["failure"]["reason"]) == ("FAILED", "SUPERSEDED")
    assert intents(patient, link)[0]["supersedes"] == sent["id"]
    assert patient.proves(link).accepted
    # The account goes on behind it.
    assert patient.finalized(account)["nonce"] == failed["nonce"] + 1


def test_a_transfer_is_signed_once_two_have_approved_it(
    patient: Suite, account: dict[str, Any], approvers: dict[str, httpx.Client]
) -> None:
    sent = patient.send(account, to="0x" + "11" * 20, value_wei=str(ABOVE_WEI + 1))
    waiting = patient.until_state(sent, "AWAITING_APPROVAL")
    assert waiting["nonce"] is None
    terms = {"terms_sha256": waiting["terms_sha256"]}
    for name in ("alice", "bob"):
        reply = approvers[name].post(f"/v1/transfers/{sent['id']}:approve", json=terms)
        assert reply.status_code == 200, reply.text
    assert patient.until_state(sent)["state"] == "FINALIZED"
    entries = patient.get(f"/v1/links/{sent['id']}:approval")["entries"]
    assert [entry["body"]["approver"] for entry in entries] == ["alice", "bob"]
    assert len(intents(patient, sent)[0]["policy"]["approvals"]) == 2
    assert patient.proves(sent).accepted


def test_a_policy_changes_by_two_approvers(patient: Suite, approvers: dict[str, httpx.Client]) -> None:
    proposed = approvers["alice"].post("/v1/policies", json={"document": policy(3)})
    assert proposed.status_code == 201, proposed.text
    name = proposed.json()["sha256"]
    assert approvers["alice"].post(f"/v1/policies/{name}:approve").status_code == 403
    for approver in ("bob", "carol"):
        reply = approvers[approver].post(f"/v1/policies/{name}:approve")
        assert reply.status_code == 200, reply.text
    assert reply.json()["policy"]["state"] == "IN_FORCE", reply.text
    assert patient.get("/v1/policy")["version"] == 3
    refused = approvers["alice"].post("/v1/policies", json={"document": policy(4, count=0)})
    assert refused.status_code == 400, refused.text
    assert refused.json()["errors"][0]["field"].endswith("approvals.count")


def test_a_gap_is_filled(patient: Suite, account: dict[str, Any]) -> None:
    """A nonce that was given back below one that is on its way: a transfer was cancelled while no log took intents."""
    patient.kill("evidence")
    built = [patient.until_state(patient.send(account), "BUILT") for _ in range(2)]
    low, high = sorted(built, key=lambda transfer: int(transfer["nonce"]))
    cancelled = patient.operator.post(f"/v1/transfers/{low['id']}:cancel").json()
    assert (cancelled["state"], cancelled["failure"]["reason"]) == ("FAILED", "TRANSFER_CANCELLED")
    patient.launch("evidence")
    assert patient.until_state(high)["state"] == "FINALIZED"
    gap = patient.transfer(f"gap:31337:{account['address'][2:].lower()}:{low['nonce']}")
    assert (patient.until_state(gap)["state"], gap["supersedes"]) == ("FINALIZED", "")
    assert patient.proves(gap).accepted
