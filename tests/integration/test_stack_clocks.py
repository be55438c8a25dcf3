"""A machine's clock that jumps by an hour: one process of the embedded stack at a time, ahead, behind, and right again.

libfaketime gives a process the wall clock that a file says, and leaves the monotonic one, as a real jump does.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.core.canonical import parse_time
from tests.integration.dependencies import run_to_end
from tests.integration.suite.running_suite import Suite, somebody, until
from tools.stack.options import External, StackOptions
from tools.stack.stack import Stack

# Whose clock jumps. The database's is the one that all share.
SERVICES = ("gateway", "keys", "txbuilder", "signer", "broadcaster", "evidence")
HOUR_S = 3_600
# The dynamic linker fills in the machine's own directory.
LIBRARY = "/usr/$LIB/faketime/libfaketimeMT.so.1"
# Approvers are asked above it.
ABOVE_WEI = 10**15
_POLICY = f"""
version: 2
name: clocks
rules:
  chains:
    allow: ["eip155:31337"]
  destinations:
    allow: any
  assets:
    "eip155:31337/native":
      per_transfer: "{10**18}"
      approvals: {{above: "{ABOVE_WEI}", count: 1, valid_s: 600}}
"""


@dataclass(frozen=True)
class Clocks:
    """The clock of each service, as a file that its process reads whenever it asks for the time."""

    directory: Path

    def environment(self, service: str) -> dict[str, str]:
        self.set(service, 0)
        return {
            "LD_PRELOAD": LIBRARY,
            "FAKETIME_TIMESTAMP_FILE": str(self._file(service)),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, service: str, ahead_s: int) -> None:
        fresh = self._file(service).with_suffix(".new")
        fresh.write_text(f"{ahead_s:+d}\n", encoding="utf-8")
        fresh.replace(self._file(service))

    def _file(self, service: str) -> Path:
        return self.directory / f"clock-{service}"


@dataclass(frozen=True)
class Jumping:
    suite: Suite
    clocks: Clocks


@pytest.fixture(scope="module")
def jumping() -> Iterator[Jumping]:
    directory = Path(tempfile.mkdtemp(prefix="goldenlink-clocks-"))
    directory.chmod(0o755)
    clocks = Clocks(directory)
    policy_file = directory / "policy.yaml"
    policy_file.write_text(_POLICY, encoding="utf-8")
    options = StackOptions(
        block_time_s=0.25,
        supervised=True,
        tracing=False,
        policy_file=policy_file,
        environment={service: clocks.environment(service) for service in SERVICES},
        external=External(),
    )
    stack = Stack(directory / "stack", options)
    try:
        run_to_end(stack.start())
        try:
            yield Jumping(Suite(stack), clocks)
        finally:
            run_to_end(stack.stop())
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def account(jumping: Jumping) -> dict[str, Any]:
    return jumping.suite.make_account(1_000)


@pytest.fixture
def right_again(jumping: Jumping) -> Iterator[None]:
    yield
    for service in SERVICES:
        jumping.clocks.set(service, 0)


def times(body: dict[str, Any]) -> list[datetime]:
    return [parse_time(body[name]) for name in ("requested_at", "sent_at", "received_at") if name in body]


@pytest.mark.usefixtures("right_again")
@pytest.mark.parametrize("service", SERVICES)
def test_an_hour_ahead_or_behind_costs_a_transfer_time_at_most(
    jumping: Jumping, account: dict[str, Any], service: str
) -> None:
    suite, receiver = jumping.suite, somebody()
    body = {"account_id": account["id"], "to": receiver, "value_wei": "1"}
    sent, keys = [], []
    for ahead_s in (HOUR_S, -HOUR_S):
        jumping.clocks.set(service, ahead_s)
        if service == "evidence":
            direction = "ahead of" if ahead_s > 0 else "behind"
            why = f"{HOUR_S} s {direction} the database's"
            until(lambda why=why: any(why in line for line in missing(suite)), why, 10.0)
        for _ in range(2):
            keys.append(secrets.token_hex(8))
            sent.append(suite.post(body, keys[-1]).raise_for_status().json())
        # The log alone needs two clocks that agree. Nobody else's matters.
        if service != "evidence":
            ended = suite.until_ended(sent)
            assert [transfer["state"] for transfer in ended] == ["FINALIZED"] * len(sent)
    if service == "evidence":
        assert {suite.transfer(transfer["id"])["state"] for transfer in sent} <= {"ACCEPTED", "BUILT"}
    jumping.clocks.set(service, 0)
    ended = suite.until_ended(sent)
    assert [transfer["state"] for transfer in ended] == ["FINALIZED"] * len(sent)
    # The same key, the same transfer; and one payment each.
    assert [suite.post(body, key).json()["id"] for key in keys] == [transfer["id"] for transfer in sent]
    assert int(suite.chain.call("eth_getBalance", receiver, "latest"), 16) == len(sent)
    link = suite.link(ended[0])
    told = [time for entry in link["entries"] for time in times(entry["body"])]
    assert max(told) - min(told) < timedelta(minutes=2), told
    assert [entry["kind"] for entry in link["entries"]].count("signature") == 1
    assert all(suite.proves(transfer).accepted for transfer in (ended[0], ended[-1]))
    assert suite.get("/v1/status")["can_sign"]


@pytest.mark.usefixtures("right_again")
@pytest.mark.parametrize(
    ("service", "ahead_s"), [(service, ahead_s) for service in ("gateway", "signer") for ahead_s in (HOUR_S, -HOUR_S)]
)
def test_an_approval_counts_for_as_long_as_was_said(
    jumping: Jumping, account: dict[str, Any], service: str, ahead_s: int
) -> None:
    suite = jumping.suite
    jumping.clocks.set(service, ahead_s)
    sent = suite.send(account, to=somebody(), value_wei=str(ABOVE_WEI + 1))
    waiting = suite.until_state(sent, "AWAITING_APPROVAL")
    approver = suite.client(suite.stack.api_token_file("approver"))
    terms = {"terms_sha256": waiting["terms_sha256"]}
    approver.post(f"/v1/transfers/{sent['id']}:approve", json=terms).raise_for_status()
    assert suite.until_state(sent)["state"] == "FINALIZED"


@pytest.mark.usefixtures("right_again")
def test_a_clock_that_jumps_while_a_node_answers_loses_no_answer(jumping: Jumping, account: dict[str, Any]) -> None:
    """An answer that the log refuses would keep a mined transfer from being proven."""
    suite = jumping.suite
    for node in suite.stack.record["node_urls"]:
        suite.set_fault(node, delay_s=1.0)
    sent = suite.send(account)
    requests = "SELECT count(*) FROM broadcaster.outbox WHERE kind = 'request'"
    until(lambda: int(suite.database(requests)) > 0, "the request is on its way", 20.0)
    jumping.clocks.set("broadcaster", HOUR_S)
    until(lambda: int(suite.database(requests)) == 0, "it is answered", 20.0)
    suite.clear_faults()
    assert suite.until_state(sent)["state"] == "FINALIZED"


def missing(suite: Suite) -> list[str]:
    return list(suite.get("/v1/status")["missing"])
