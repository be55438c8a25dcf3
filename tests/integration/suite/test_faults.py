"""What breaks: identities, tokens, nodes, the database, the log, every process. Nothing is lost, nothing is twice."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml

from services.core.errors import Reason
from services.runtime.rpc_errors import from_rpc_error
from tests.integration.suite.running_suite import ROOT, Suite, somebody, until
from tools.stack.authority import Authority
from tools.stack.readiness import open_channel
from tools.stack.services import SERVICE_NAMES

# A method of each service that takes an empty request.
METHODS = {
    "keys": "Keys/GetWallet",
    "txbuilder": "TxBuilder/GetBuilderStatus",
    "signer": "Signer/GetPolicy",
    "broadcaster": "Broadcaster/GetBroadcasterStatus",
    "evidence": "Evidence/GetEvidenceStatus",
    "tracestore": "TraceStore/GetTrace",
}
BATCH = 30


@pytest.fixture(autouse=True)
def healed(suite: Suite) -> Iterator[None]:
    yield
    suite.heal()


def accepted(suite: Suite, transfers: list[dict[str, Any]]) -> None:
    """Every one is finalized, and its bundle verifies."""
    for transfer in transfers:
        ended = suite.until_state(transfer)
        assert ended["state"] == "FINALIZED", ended
        report = suite.proves(transfer)
        assert report.accepted, report


def batch_of(account: dict[str, Any], size: int, receiver: str) -> list[dict[str, Any]]:
    return [{"account_id": account["id"], "to": receiver, "value_wei": str(number + 1)} for number in range(size)]


def sent_once_each(suite: Suite, account: dict[str, Any], receiver: str, size: int) -> None:
    """Nonces 0 … size - 1, no more, and on the chain exactly the sum of what was sent."""
    nonces = suite.database(
        "SELECT string_agg(nonce::text, ',' ORDER BY nonce) FROM gateway.transfers"
        f" WHERE account_id = '{account['id']}'"
    )
    assert nonces == ",".join(map(str, range(size)))
    assert int(suite.chain.call("eth_getTransactionCount", account["address"], "latest"), 16) == size
    assert int(suite.chain.call("eth_getBalance", receiver, "latest"), 16) == size * (size + 1) // 2


# Identities


async def refusal(service: str, address: str, tls_dir: Path, expected_name: str | None = None) -> Reason | None:
    """Why a call with the certificate in `tls_dir` is refused; None when it is answered, with whatever."""
    async with open_channel(expected_name or service, address, tls_dir) as channel:
        try:
            await channel.unary_unary(f"/wallet.v1.{METHODS[service]}", None, None)(b"", timeout=5.0)
        except grpc.aio.AioRpcError as error:
            reason = from_rpc_error(error, service).reason
            return None if reason in (Reason.NOT_FOUND, Reason.INVALID_REQUEST) else reason
    return None


@pytest.mark.parametrize("service", METHODS)
async def test_a_certificate_of_another_service_is_refused(suite: Suite, service: str) -> None:
    callers = yaml.safe_load((ROOT / "services" / "callers.yaml").read_text(encoding="utf-8"))[service]
    address = suite.stack.record["services"][service]["address"]
    tls = Path(suite.stack.record["tls_dir"])
    answers = {caller: await refusal(service, address, tls / caller) for caller in SERVICE_NAMES}
    assert answers == {name: None if name in callers else Reason.CALLER_NOT_ALLOWED for name in SERVICE_NAMES}


async def test_a_server_of_another_name_or_authority_is_not_believed(suite: Suite, tmp_path: Path) -> None:
    address = suite.stack.record["services"]["signer"]["address"]
    tls = Path(suite.stack.record["tls_dir"])
    assert await refusal("signer", address, tls / "gateway", expected_name="keys") is Reason.SERVICE_UNAVAILABLE
    stranger = Authority(tmp_path)
    stranger.issue("gateway")
    # It trusts us, and we do not trust it: the suite's authority has not signed its certificate.
    (tmp_path / "gateway" / "ca.pem").write_bytes((tls / "gateway" / "ca.pem").read_bytes())
    assert await refusal("signer", address, tmp_path / "gateway") is Reason.SERVICE_UNAVAILABLE


# Tokens


def says(suite: Suite, service: str, since: int, reason: Reason) -> bool:
    """Since line `since` of its log it names the reason in a record of its own: no traceback, nothing else is loud.

    A token may come back, so the signer tries again, and says so each time; a wrong PIN is tried once.
    """
    loud = [line for line in suite.log_lines(service)[since:] if line["level"] in ("WARNING", "ERROR", "CRITICAL")]
    assert all(reason.name in f"{line['message']} {line.get('reason', '')}" for line in loud), loud
    assert not any("exception" in line for line in loud)
    assert len(loud) <= 1 or (service == "signer" and reason is Reason.TOKEN_UNAVAILABLE), loud
    return bool(loud)


@pytest.mark.parametrize(
    ("service", "trouble"),
    [
        ("signer", Reason.TOKEN_PIN_INCORRECT),
        ("signer", Reason.TOKEN_UNAVAILABLE),
        ("keys", Reason.TOKEN_PIN_INCORRECT),
        ("evidence", Reason.TOKEN_UNAVAILABLE),
    ],
)
def test_a_service_without_its_token_says_so_and_nothing_is_signed(
    suite: Suite, tmp_path: Path, service: str, trouble: Reason
) -> None:
    wrong_pin = tmp_path / "pin"
    wrong_pin.write_text("000000\n")
    changed = {
        Reason.TOKEN_PIN_INCORRECT: {"WALLET_TOKEN_PIN_FILE": str(wrong_pin)},
        Reason.TOKEN_UNAVAILABLE: {"WALLET_TOKEN_LABEL": "lost"},
    }[trouble]
    account = suite.make_account()
    suite.kill(service)
    since = len(suite.log_lines(service))
    suite.launch_otherwise(service, **changed)
    until(lambda: says(suite, service, since, trouble), "it says what is wrong", 10.0)
    transfer = suite.send(account)
    status = suite.get("/v1/status")
    if service != "keys":
        assert not status["can_sign"], status
        assert [sentence for sentence in status["missing"] if "oken" in sentence or service in sentence], status
    assert (
        suite.database(f"SELECT count(signature_body) FROM signer.register WHERE link_id = '{transfer['id']}'") == "0"
    )
    suite.heal()
    if suite.until_state(transfer)["state"] == "FAILED":
        # A wrong PIN is no outage: the step is not tried again, and the nonce goes to the next transfer.
        assert trouble is Reason.TOKEN_PIN_INCORRECT
    accepted(suite, [following := suite.send(account)])
    assert suite.transfer(following["id"])["nonce"] <= 1
    assert suite.get("/v1/status")["can_sign"]


def test_a_signer_that_loses_its_children_goes_on(suite: Suite) -> None:
    account, receiver = suite.make_account(), somebody()
    transfers: list[dict[str, Any]] = []
    for part in range(3):
        bodies = batch_of(account, BATCH, receiver)[part * 10 : part * 10 + 10]
        transfers += suite.send_batch(bodies)
        for child in suite.children("signer"):
            os.kill(child, signal.SIGKILL)
    accepted(suite, transfers)
    sent_once_each(suite, account, receiver, BATCH)


def test_a_token_that_vanishes_and_comes_back(suite: Suite) -> None:
    """The session is lost with the child, and no new one can be opened until the token is there again."""
    account = suite.make_account()
    accepted(suite, [suite.send(account)])
    tokens = suite.stack.directory / "tokens" / "signer" / "tokens"
    hidden = tokens.with_name("hidden")
    tokens.rename(hidden)
    try:
        tokens.mkdir(mode=0o700)
        for child in suite.children("signer"):
            os.kill(child, signal.SIGKILL)
        transfer = suite.send(account)
        until(lambda: not suite.get("/v1/status")["can_sign"], "the status says no")
        assert any("token" in sentence for sentence in suite.get("/v1/status")["missing"])
        suite.until_state(transfer, "BUILT")
    finally:
        tokens.rmdir()
        hidden.rename(tokens)
    accepted(suite, [transfer])
    assert suite.transfer(transfer["id"])["nonce"] == 1


# Nodes

NODE_FAULTS: dict[str, dict[str, Any]] = {
    "down": {"drop": "request"},
    "taking requests and never answering": {"drop": "response"},
    "slow": {"delay_s": 8.0},
    "answering nonsense": {"body": "<html>we'll be right back</html>"},
    "answering HTTP 500": {"status": 500, "body": '{"jsonrpc": "2.0"}'},
    "answering JSON of another form": {"body": '{"jsonrpc": "2.0", "id": null, "result": {"a": 1}}'},
    "on another chain": {"results": {"eth_chainId": "0x1"}},
    "lying about hashes": {"results": {"eth_sendRawTransaction": f"0x{'ab' * 32}"}},
    "saying that it has nothing": {"results": {"eth_getTransactionCount": "0x0", "eth_getBalance": "0x0"}},
}


@pytest.mark.parametrize("fault", NODE_FAULTS)
def test_one_bad_node_of_three_changes_nothing(suite: Suite, account: dict[str, Any], fault: str) -> None:
    suite.set_fault("node-a", **NODE_FAULTS[fault])
    transfer = suite.send(account)
    accepted(suite, [transfer])
    last = suite.link(transfer)["entries"][-1]["body"]
    assert last["status"] == "finalized"
    assert len(last["agreeing_nodes"]) >= 2


def other_block(suite: Suite, digit: str) -> dict[str, Any]:
    block: dict[str, Any] = suite.chain.call("eth_getBlockByNumber", "latest", False)
    return {**block, "hash": f"0x{digit * 64}"}


def test_a_node_that_disagrees_is_not_among_those_that_agree(suite: Suite, account: dict[str, Any]) -> None:
    suite.set_fault("node-a", results={"eth_getBlockByNumber": other_block(suite, "a")})
    transfer = suite.send(account)
    accepted(suite, [transfer])
    inclusions = [entry["body"] for entry in suite.link(transfer)["entries"] if entry["kind"] == "inclusion"]
    assert all(body["agreeing_nodes"] == ["node-b", "node-c"] for body in inclusions), inclusions


def test_two_nodes_that_disagree_hold_finality_back_until_two_agree(suite: Suite, account: dict[str, Any]) -> None:
    first = suite.finalized(account)
    suite.set_fault("node-a", results={"eth_getBlockByNumber": other_block(suite, "a")})
    suite.set_fault("node-b", results={"eth_getBlockByNumber": other_block(suite, "b")})
    transfer = suite.send(account)
    # The chain itself has finalized it; k nodes do not say so.
    suite.until_state(transfer, "SUBMITTED")
    tx_hash = suite.transfer(transfer["id"])["tx_hash"]
    mined = until(lambda: suite.chain.call("eth_getTransactionReceipt", tx_hash), "it is mined")
    beyond = int(mined["blockNumber"], 16) + 6
    until(lambda: int(suite.chain.call("eth_blockNumber"), 16) >= beyond, "six blocks more")
    assert suite.transfer(transfer["id"])["state"] == "SUBMITTED"
    suite.clear_faults()
    accepted(suite, [transfer])
    assert suite.transfer(transfer["id"])["nonce"] == first["nonce"] + 1


def test_without_enough_nodes_a_transfer_is_refused_for_now(suite: Suite, account: dict[str, Any]) -> None:
    for node in ("node-a", "node-b"):
        suite.set_fault(node, drop="request")
    until(lambda: not suite.get("/v1/status")["can_sign"], "the status says no")
    assert any("1 of 2 needed nodes" in sentence for sentence in suite.get("/v1/status")["missing"])
    key, body = secrets.token_hex(8), {"account_id": account["id"], "to": somebody(), "value_wei": "1"}
    reply = suite.post(body, key)
    assert (reply.status_code, reply.json()["reason"]) == (503, "NODE_UNAVAILABLE")
    suite.clear_faults()
    reply = until(lambda: answer if (answer := suite.post(body, key)).status_code != 503 else None, "it is accepted")
    accepted(suite, [reply.json()])


# Redis, the database, the log


def test_without_redis_nonces_come_from_the_database_alone(suite: Suite) -> None:
    account, receiver = suite.make_account(), somebody()
    suite.kill("redis")
    accepted(suite, suite.send_batch(batch_of(account, 5, receiver)))
    sent_once_each(suite, account, receiver, 5)


def test_a_database_gone_for_ten_seconds_leaves_nothing_half_done(suite: Suite) -> None:
    account, receiver = suite.make_account(), somebody()
    bodies = batch_of(account, 40, receiver)
    transfers = suite.send_batch(bodies[:20])
    suite.kill("postgres")
    gone_at = time.monotonic()
    keys, answers = [secrets.token_hex(8) for _ in bodies[20:]], []
    for key, body in zip(keys, bodies[20:], strict=True):
        with httpx.Client(trust_env=False, timeout=30.0) as patient:
            assert patient.get(f"{suite.stack.gateway_url}/readyz").status_code == 503
        answers.append(suite.post(body, key))
        if time.monotonic() - gone_at > 10.0:
            break
        time.sleep(0.5)
    suite.launch("postgres")
    assert time.monotonic() - gone_at >= 10.0
    for reply in answers:
        assert reply.status_code == 503, reply.text
        assert (reply.json()["reason"], reply.headers["retry-after"]) == ("DATABASE_UNAVAILABLE", "1")

    # The same keys again, now and for the rest: one transfer each.
    def taken(key: str, body: dict[str, Any]) -> dict[str, Any]:
        def again() -> dict[str, Any] | None:
            reply = suite.post(body, key)
            return dict(reply.json()) if reply.status_code == 202 else None

        return until(again, "the request is accepted")

    transfers += [taken(key, body) for key, body in zip(keys, bodies[20:], strict=True)]
    accepted(suite, transfers)
    sent_once_each(suite, account, receiver, 40)


def test_without_the_log_no_signature_is_made(suite: Suite) -> None:
    account, receiver = suite.make_account(), somebody()
    accepted(suite, [suite.send(account, to=receiver, value_wei="1")])
    suite.kill("evidence")
    single = suite.send(account, to=receiver, value_wei="2")
    batch = suite.send_batch(batch_of(account, 5, receiver)[2:])
    waiting = [single, *batch]
    for transfer in waiting:
        suite.until_state(transfer, "BUILT")
    assert not suite.get("/v1/status")["can_sign"]
    time.sleep(2.0)  # the saga tries again meanwhile
    ids = ", ".join(f"'{transfer['id']}'" for transfer in waiting)
    registered = f"FROM signer.register WHERE link_id IN ({ids})"
    assert suite.database(f"SELECT count(*) > 0, count(signature_body), count(intent_index) {registered}") == "t|0|0"
    assert suite.database(f"SELECT count(raw_tx) FROM gateway.transfers WHERE transfer_id IN ({ids})") == "0"
    suite.launch("evidence")
    accepted(suite, waiting)
    sent_once_each(suite, account, receiver, 5)


# SIGKILL


@pytest.mark.parametrize("service", [*SERVICE_NAMES, "nodes"])
def test_a_batch_survives_the_sigkill_of(suite: Suite, service: str) -> None:
    account, receiver = suite.make_account(), somebody()
    transfers = suite.send_batch(batch_of(account, BATCH, receiver))
    # At whichever step of the batch that is: within a second it goes from ACCEPTED to SUBMITTED.
    time.sleep(secrets.randbelow(800) / 1000)
    suite.restart(service)
    accepted(suite, transfers)
    sent_once_each(suite, account, receiver, BATCH)


def test_every_service_is_killed_while_a_batch_is_on_its_way(suite: Suite) -> None:
    account, receiver = suite.make_account(), somebody()
    transfers = suite.send_batch(batch_of(account, BATCH, receiver))

    async def kill_all() -> None:
        await asyncio.gather(*(suite.stack.kill(service) for service in SERVICE_NAMES))

    asyncio.run(kill_all())
    suite.heal()
    accepted(suite, transfers)
    sent_once_each(suite, account, receiver, BATCH)
