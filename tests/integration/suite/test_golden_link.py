"""Every kind of link, from the request to a bundle that the stand-alone verifier accepts; and the CLI against all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.core.addresses import Address, address_of_public_key, checksum_address
from services.core.derivation import Mnemonic, derive, seed_of_mnemonic
from services.core.paths import AccountPath, Algorithm
from tests.integration.suite.running_suite import CHAIN_ID, ROOT, Suite, somebody, until
from tools.goldenlink.exits import Exit
from tools.verify import load_trust, verify_bundle

TOKEN_CODE = ROOT / "tools" / "demo" / "token" / "DemoToken.hex"
# Above the development policy's limit on this chain.
TOO_MUCH_WEI = str(2_000 * 10**18)
DENIED_KINDS = ["intent"]
MINED_KINDS = {"intent": 1, "signature": 1, "request": 2, "response": 2}


@pytest.fixture(scope="module")
def token(suite: Suite, account: dict[str, Any]) -> str:
    """The address of a token contract, created by a transfer of `account`, which holds all of it."""
    ended = suite.finalized(account, data=TOKEN_CODE.read_text(encoding="utf-8").strip())
    assert ended["to"] is None
    assert_proven(suite, ended, receipt_status=1)
    address = suite.chain.created_contract(ended["tx_hash"])
    return checksum_address(Address(bytes.fromhex(address[2:])))


def assert_proven(suite: Suite, ended: dict[str, Any], *, receipt_status: int | None) -> None:
    """Its link has the entries of its kind, and its bundle is accepted: every check, none left out."""
    assert ended["receipt_status"] == receipt_status
    kinds = [entry["kind"] for entry in suite.link(ended)["entries"]]
    if receipt_status is None:
        assert kinds == DENIED_KINDS
    else:
        assert {kind: kinds.count(kind) for kind in MINED_KINDS} == MINED_KINDS
        assert kinds[-1] == "inclusion"
    report = suite.proves(ended)
    assert report.accepted, report
    assert [check.number for check in report.checks] == list(range(1, 13))
    assert report.link_id == ended["id"]


def test_a_plain_transfer(suite: Suite, account: dict[str, Any]) -> None:
    receiver = somebody()
    ended = suite.finalized(account, to=receiver, value_wei="12345")
    assert_proven(suite, ended, receipt_status=1)
    assert int(suite.chain.call("eth_getBalance", receiver, "latest"), 16) == 12345


@pytest.mark.parametrize("kind", ["legacy", "access_list", "dynamic_fee"])
def test_a_transfer_of_each_type(suite: Suite, account: dict[str, Any], kind: str) -> None:
    ended = suite.finalized(account, to=somebody(), value_wei="1", type=kind)
    assert_proven(suite, ended, receipt_status=1)
    mined = suite.chain.call("eth_getTransactionByHash", ended["tx_hash"])
    assert int(mined["type"], 16) == {"legacy": 0, "access_list": 1, "dynamic_fee": 2}[kind]


def test_an_erc20_transfer(suite: Suite, account: dict[str, Any], token: str) -> None:
    receiver = somebody()
    ended = suite.finalized(account, to=receiver, erc20={"token": token, "amount": "2500"})
    assert_proven(suite, ended, receipt_status=1)
    assert suite.chain.token_balance(token, receiver) == 2500


def test_a_batch_of_twenty(suite: Suite) -> None:
    account, receivers = suite.make_account(), [somebody() for _ in range(20)]
    bodies = [
        {"account_id": account["id"], "to": receiver, "value_wei": str(place + 1)}
        for place, receiver in enumerate(receivers)
    ]
    ended = suite.until_ended(suite.send_batch(bodies))
    assert [transfer["nonce"] for transfer in ended] == list(range(20))
    assert len({transfer["trace_id"] for transfer in ended}) == 20
    for place, transfer in enumerate(ended):
        assert_proven(suite, transfer, receipt_status=1)
        assert int(suite.chain.call("eth_getBalance", receivers[place], "latest"), 16) == place + 1


def test_a_denied_transfer_and_one_among_others(suite: Suite) -> None:
    account = suite.make_account()
    alone = suite.until_state(suite.send(account, to=somebody(), value_wei=TOO_MUCH_WEI))
    bodies = [{"account_id": account["id"], "to": somebody(), "value_wei": value} for value in ("1", TOO_MUCH_WEI, "2")]
    first, denied, last = suite.until_ended(suite.send_batch(bodies))
    for transfer in (alone, denied):
        assert transfer["state"] == "FAILED"
        assert transfer["failure"]["reason"] == "POLICY_DENIED"
        assert "wei" in transfer["failure"]["details"]["rule"]
        assert_proven(suite, transfer, receipt_status=None)
        body = suite.link(transfer)["entries"][0]["body"]
        assert body["policy"]["decision"] == "deny"
    # Neither held a nonce, and neither harmed its neighbours.
    assert (first["nonce"], last["nonce"]) == (0, 1)
    for transfer in (first, last):
        assert_proven(suite, transfer, receipt_status=1)


def test_a_call_that_reverts_on_chain(suite: Suite, account: dict[str, Any], token: str) -> None:
    call = {"signature": "transfer(address,uint256)", "arguments": [somebody(), str(10**30)]}
    refused = suite.until_state(suite.send(account, to=token, call=call))
    assert (refused["state"], refused["failure"]["reason"]) == ("FAILED", "EXECUTION_REVERTED")
    ended = suite.finalized(account, to=token, call=call, gas_limit="100000")
    assert_proven(suite, ended, receipt_status=0)


def test_a_bundle_that_was_changed_is_rejected(suite: Suite, account: dict[str, Any]) -> None:
    bundle = suite.bundle(suite.finalized(account))
    trust = load_trust(suite.stack.trust_file.read_bytes())
    assert verify_bundle(bundle, trust).accepted
    document = json.loads(bundle)
    document["entries"][1]["salt"] = f"0x{'00' * 32}"
    report = verify_bundle(json.dumps(document).encode(), trust)
    assert next(check.number for check in report.checks if not check.ok) == 2


# The CLI


@dataclass(frozen=True)
class CommandLine:
    """`goldenlink`, as somebody types it, against the running stack."""

    suite: Suite

    def __call__(self, *arguments: str, exit_code: Exit = Exit.OK, variables: dict[str, str] | None = None) -> Any:
        """What it prints with --json, once it has left with this exit code."""
        done = self.run(*arguments, "--json", **(variables or {}))
        assert done.returncode == exit_code, (done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "GOLDENLINK_URL": self.suite.stack.gateway_url,
            "GOLDENLINK_TOKEN_FILE": str(self.suite.stack.api_token_file("operator")),
            "COLUMNS": "160",
            **variables,
        }
        command = [sys.executable, "-m", "tools.goldenlink", *arguments]
        return subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture
def goldenlink(suite: Suite) -> CommandLine:
    return CommandLine(suite)


def test_the_commands_from_a_wallet_to_a_proof(suite: Suite, goldenlink: CommandLine, tmp_path: Path) -> None:
    key = goldenlink("recovery", "keygen", "--out", str(tmp_path / "recovery.key"))
    assert (tmp_path / "recovery.key").stat().st_mode & 0o777 == 0o600
    options = ("--words", "12", "--recovery-recipient", key["recovery_recipient"])
    wallet = goldenlink("wallet", "create", "--name", "by hand", *options)
    account = goldenlink("account", "create", wallet["id"], "--chain-id", CHAIN_ID, "--index", "3")
    # The mnemonic that its owner decrypts is the wallet's: the account's address follows from it.
    opened = goldenlink("recovery", "open", wallet["id"], "--key", str(tmp_path / "recovery.key"))
    assert len(opened["mnemonic"].split()) == 12
    path = AccountPath(Algorithm.ECDSA_SECP256K1, 0, 0, 3)
    leaf = derive(seed_of_mnemonic(Mnemonic(opened["mnemonic"])), path.algorithm, path.indices())
    assert checksum_address(address_of_public_key(leaf.public_key)) == account["address"]
    suite.chain.fund(account["address"], 10)

    made = goldenlink("transfer", "--account", account["id"], "--to", somebody(), "--value", "0.25 ether")
    assert (made["state"], made["value_wei"]) == ("FINALIZED", str(25 * 10**16))
    link = goldenlink("link", "show", made["id"])
    assert link["state"] == "FINALIZED"
    assert goldenlink("trace", made["id"])["resourceSpans"]
    assert goldenlink("trace", made["trace_id"])["resourceSpans"]
    bundle = tmp_path / "bundle.json"
    assert goldenlink("link", "bundle", made["id"], "--out", str(bundle))["bytes"] == bundle.stat().st_size
    # No network: neither a gateway nor a token is named.
    offline = {"GOLDENLINK_URL": "", "GOLDENLINK_TOKEN_FILE": ""}
    trust = ("--trust", str(suite.stack.trust_file))
    (report,) = goldenlink("verify", str(bundle), *trust, variables=offline)
    assert report["accepted"]
    bundle.write_text(json.dumps({**json.loads(bundle.read_bytes()), "link_id": "t-other"}))
    (report,) = goldenlink("verify", str(bundle), *trust, exit_code=Exit.NEGATIVE, variables=offline)
    assert not report["accepted"]
    shown = {
        ("link", "show", made["id"]): "inclusion",
        ("trace", made["id"]): "signer.signature",
        ("policy", "show"): "per_transfer_wei",
        ("status",): "a signature could be made now",
    }
    for command, part in shown.items():
        done = goldenlink.run(*command)
        assert (done.returncode, part in done.stdout) == (Exit.OK, True), (command, done.stdout, done.stderr)


def test_a_batch_file(suite: Suite, account: dict[str, Any], goldenlink: CommandLine, tmp_path: Path) -> None:
    rows = [f"{somebody()},{place} gwei,{account['id']}" for place in range(1, 6)]
    batch = tmp_path / "batch.csv"
    batch.write_text("\n".join(["to,value,account", *rows]) + "\n")
    made = goldenlink("transfer", "--batch", str(batch))["transfers"]
    assert [transfer["state"] for transfer in made] == ["FINALIZED"] * 5
    assert [transfer["value_wei"] for transfer in made] == [str(place * 10**9) for place in range(1, 6)]


def test_policy_and_status(suite: Suite, goldenlink: CommandLine) -> None:
    policy = goldenlink("policy", "show")
    assert policy["document"] == suite.stack.foundation.policy_file.read_text(encoding="utf-8")
    assert goldenlink("status")["can_sign"]
    suite.kill("evidence")
    try:
        status = goldenlink("status", exit_code=Exit.NEGATIVE)
        assert not status["can_sign"]
        assert any("evidence" in sentence for sentence in status["missing"])
    finally:
        suite.heal()
        until(lambda: suite.get("/v1/status")["can_sign"], "a signature could be made again")


def test_exit_codes_mean_something(suite: Suite, account: dict[str, Any], goldenlink: CommandLine) -> None:
    send = ("transfer", "--account", account["id"], "--to", somebody())
    failed = goldenlink(*send, "--value", TOO_MUCH_WEI, exit_code=Exit.NEGATIVE)
    assert failed["failure"]["reason"] == "POLICY_DENIED"
    assert "not a whole number of wei" in goldenlink(*send, "--value", "0.5 wei", exit_code=Exit.USAGE)["error"]
    refused = goldenlink(*send, "--value", "1", "--gas-limit", "9" * 12, exit_code=Exit.REFUSED)
    assert refused["reason"] == "GAS_LIMIT_ABOVE_BLOCK"
    goldenlink("link", "show", "t-nobody", exit_code=Exit.REFUSED)
    goldenlink("status", exit_code=Exit.UNAVAILABLE, variables={"GOLDENLINK_URL": "http://127.0.0.1:1"})
    goldenlink("status", exit_code=Exit.USAGE, variables={"GOLDENLINK_TOKEN_FILE": "/nowhere"})
