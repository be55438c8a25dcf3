"""The commands by which people cancel, approve, reject and change the policy, against a running gateway."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from protos.wallet.v1 import signer_pb2
from services.gateway.credentials import Role
from tests.fakes.signer import APPROVED_VALUE_WEI
from tests.integration.gateway_harness import Bench, Client, plain
from tools.goldenlink.app import main


class Terminal:
    def __init__(
        self, bench: Bench, client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._bench, self._client, self._monkeypatch, self._capsys = bench, client, monkeypatch, capsys

    async def run(self, name: str, role: Role, *words: str) -> tuple[int, str]:
        """`goldenlink WORDS`, as the holder of a token: exit code and standard output."""
        file = self._bench.directory / f"{name}.token"
        if not file.exists():
            file.write_text(await self._bench.token(role, name=name))
        self._monkeypatch.setattr("sys.argv", ["goldenlink", *words])
        self._monkeypatch.setenv("GOLDENLINK_URL", f"http://127.0.0.1:{self._client.port}")
        self._monkeypatch.setenv("GOLDENLINK_TOKEN_FILE", str(file))

        def call() -> int:
            try:
                main()
            except SystemExit as end:
                return int(end.code or 0)
            return 0

        code = await asyncio.to_thread(call)
        return code, self._capsys.readouterr().out

    async def json(self, name: str, role: Role, *words: str) -> Any:
        code, text = await self.run(name, role, *words, "--json")
        assert code == 0, text
        return json.loads(text)


@pytest.fixture
def terminal(
    bench: Bench, client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Terminal:
    return Terminal(bench, client, monkeypatch, capsys)


async def test_a_transfer_is_approved_shown_and_cancelled(client: Client, bench: Bench, terminal: Terminal) -> None:
    bench.suite.signer.approval = signer_pb2.ApprovalRule(count=1, valid_s=3600)
    transfer_id = (await client.post(plain(str(APPROVED_VALUE_WEI)))).json()["id"]
    waiting = await client.until(transfer_id, "AWAITING_APPROVAL")
    assert (await terminal.json("olga", Role.OPERATOR, "transfer", "show", transfer_id))["state"] == "AWAITING_APPROVAL"
    code, shown = await terminal.run("olga", Role.OPERATOR, "transfer", "show", transfer_id)
    assert code == 0
    assert waiting["terms_sha256"] in "".join(shown.split())
    assert "1 of all approvers" in shown
    altered = ("transfer", "approve", transfer_id, "--terms", "0x" + "00" * 32, "--json")
    code, refused = await terminal.run("alice", Role.APPROVER, *altered)
    assert (code, json.loads(refused)["reason"]) == (3, "APPROVAL_MISMATCH")
    approved = await terminal.json("alice", Role.APPROVER, "transfer", "approve", transfer_id)
    assert (approved["approver"], approved["decision"]) == ("alice", "approve")
    await client.until(transfer_id, "SUBMITTED")
    link = await terminal.json("olga", Role.OPERATOR, "transfer", "cancel", transfer_id)
    assert link["supersedes"] == transfer_id
    code, shown = await terminal.run("olga", Role.OPERATOR, "transfer", "show", transfer_id)
    assert (code, link["id"] in "".join(shown.split())) == (0, True)


async def test_a_rejected_transfer_and_one_that_needs_nobody(client: Client, bench: Bench, terminal: Terminal) -> None:
    bench.suite.signer.approval = signer_pb2.ApprovalRule(count=1, valid_s=3600)
    transfer_id = (await client.post(plain(str(APPROVED_VALUE_WEI)))).json()["id"]
    await client.until(transfer_id, "AWAITING_APPROVAL")
    code, shown = await terminal.run("alice", Role.APPROVER, "transfer", "reject", transfer_id)
    assert code == 0
    assert "alice" in shown
    await client.until(transfer_id, "FAILED")
    small = (await client.post(plain())).json()["id"]
    assert (await terminal.run("alice", Role.APPROVER, "transfer", "approve", small))[0] == 1


async def test_a_policy_is_proposed_approved_and_listed(bench: Bench, terminal: Terminal) -> None:
    document = bench.directory / "policy.yaml"
    document.write_text("version: 4")
    proposed = await terminal.json("alice", Role.APPROVER, "policy", "propose", str(document))
    for name in ("bob", "carol"):
        code, shown = await terminal.run(name, Role.APPROVER, "policy", "approve", proposed["sha256"])
        assert (code, name in shown) == (0, True)
    code, shown = await terminal.run("olga", Role.OPERATOR, "policy", "list")
    assert (code, "IN_FORCE" in shown, "bob, carol" in shown) == (0, True, True)
    assert (await terminal.json("olga", Role.OPERATOR, "policy", "show"))["version"] == 4
    document.write_text("version: 5")
    other = await terminal.json("alice", Role.APPROVER, "policy", "propose", str(document))
    rejected = await terminal.json("bob", Role.APPROVER, "policy", "reject", other["sha256"])
    assert rejected["policy"]["state"] == "REJECTED"
