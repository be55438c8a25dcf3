"""No secret and nothing personal is where it does not belong: spans, logs, Redis, process listings, clear columns.

It runs last (conftest.py), so that it reads what every other test of this package has left behind as well.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from services.core.abi import selector
from services.core.addresses import address_of_public_key
from services.core.derivation import Mnemonic, derive, seed_of_mnemonic
from services.core.paths import AccountPath, Algorithm
from services.core.recovery import decrypt_recovery
from tests.integration.suite.canaries import Canary, leaked
from tests.integration.suite.redis_monitor import RedisMonitor
from tests.integration.suite.running_suite import CHAIN_ID, Suite, somebody, until
from tests.integration.suite.scraped import all_metrics
from tests.integration.suite.stored_spans import stored_bytes, stored_spans
from tools.stack.services import ROLES, SERVICE_NAMES

CLIENT_IP = "127.0.0.77"
ACTOR = "Ada-Canary-Okonkwo"
USER_AGENT = "canary-browser/7.7"
ACCOUNT_INDEX = 7


@dataclass(frozen=True)
class Run:
    """What the canary run used, and what was seen while it ran."""

    suite: Suite
    transfers: list[dict[str, Any]]
    # Never anywhere.
    secrets: list[Canary]
    # In evidence bodies, and encrypted in open rows of the gateway; nowhere else.
    personal: list[Canary]
    # In evidence bodies and the services' own rows; nowhere else.
    on_chain: list[Canary]
    redis: bytes
    processes: bytes


@pytest.fixture(scope="module")
def run(suite: Suite) -> Run:
    recovery_key = X25519PrivateKey.generate()
    recipient = f"0x{recovery_key.public_key().public_bytes_raw().hex()}"
    account = suite.make_account(index=ACCOUNT_INDEX, recovery_recipient=recipient)
    wallet = suite.get(f"/v1/wallets/{account['wallet_id']}")
    message = bytes.fromhex(wallet["encrypted_recovery"][2:])
    mnemonic = decrypt_recovery(message, wallet["id"], recovery_key.private_bytes_raw())
    token_file = suite.make_token(ACTOR, "operator")
    with suite.client(token_file, CLIENT_IP) as http, RedisMonitor(_redis_url(suite)) as monitor:
        http.headers["User-Agent"] = USER_AGENT
        receiver, token, holder = somebody(), somebody(), somebody()
        amount = secrets.token_bytes(32)
        processes = bytearray()
        transfers = []
        for body in _bodies(account, receiver, token, holder, amount):
            reply = suite.post(body, http=http)
            assert reply.status_code == 202, reply.text
            transfers.append(reply.json())
            processes += _command_lines()
        _be_refused(suite, http, account, receiver)
        transfers = suite.until_ended(transfers)
        transfers.append(_transfer_while_a_node_fails(suite, http, account, receiver))
        processes += _command_lines() + _environments(suite)
    calldata = selector("mint(address,uint256)") + bytes(12) + bytes.fromhex(holder[2:]) + amount
    return Run(
        suite,
        transfers,
        secrets=[
            *_stack_secrets(suite),
            *_api_tokens([*(suite.stack.api_token_file(role) for role in ROLES), token_file]),
            *_keys(mnemonic, account["address"]),
            Canary.of_bytes("recovery key", recovery_key.private_bytes_raw()),
        ],
        personal=[
            Canary.of_text("client's IP", CLIENT_IP),
            Canary.of_text("actor", ACTOR),
            Canary.of_text("user agent", USER_AGENT),
        ],
        on_chain=[
            *(
                Canary.of_bytes(name, bytes.fromhex(address[2:]))
                for name, address in {
                    "sender": account["address"],
                    "receiver": receiver,
                    "token's address": token,
                    "token holder": holder,
                }.items()
            ),
            Canary.of_bytes("call data", calldata),
            Canary.of_bytes("call data's argument", amount),
        ],
        redis=monitor.seen + _redis_content(suite),
        processes=bytes(processes),
    )


def _bodies(account: dict[str, Any], receiver: str, token: str, holder: str, amount: bytes) -> list[dict[str, Any]]:
    """A plain transfer, by id and by address; a call, tokens; one that the policy denies."""
    mint = {"signature": "mint(address,uint256)", "arguments": [holder, str(int.from_bytes(amount, "big"))]}
    plain = {"to": receiver, "value_wei": "1"}
    return [
        {"account_id": account["id"], **plain},
        {"from": account["address"], "chain_id": CHAIN_ID, **plain},
        {"account_id": account["id"], "to": token, "call": mint},
        {"account_id": account["id"], "to": holder, "erc20": {"token": token, "amount": "5"}},
        {"account_id": account["id"], "to": receiver, "value_wei": str(99 * 10**20)},
    ]


def _be_refused(suite: Suite, http: httpx.Client, account: dict[str, Any], receiver: str) -> None:
    """Requests whose refusal might quote what they sent."""
    wrong = receiver[:2] + receiver[2:].swapcase()
    assert suite.post({"account_id": account["id"], "to": wrong, "value_wei": "1"}, http=http).status_code == 400
    unknown = {"from": receiver, "chain_id": CHAIN_ID, "to": receiver, "value_wei": "1"}
    assert suite.post(unknown, http=http).status_code == 404
    assert http.get(f"/v1/transfers/{receiver}").status_code == 404
    assert http.get(f"/v1/links/{receiver}").status_code == 404
    assert http.get(f"/{receiver}", params={"actor": ACTOR}).status_code == 404
    assert http.post("/v1/transfers", content=receiver.encode()).status_code == 400


def _transfer_while_a_node_fails(
    suite: Suite, http: httpx.Client, account: dict[str, Any], receiver: str
) -> dict[str, Any]:
    """aiohttp's own errors quote the URL with its key."""
    try:
        suite.set_fault("node-a", drop="request")
        suite.set_fault("node-b", methods=["eth_sendRawTransaction"], status=500, body=receiver)
        transfer = suite.post({"account_id": account["id"], "to": receiver, "value_wei": "3"}, http=http).json()
        suite.until_state(transfer, "SUBMITTED", "INCLUDED", "SAFE", "FINALIZED")
    finally:
        suite.clear_faults()
    return suite.until_state(transfer, "FINALIZED")


def _stack_secrets(suite: Suite) -> list[Canary]:
    """PINs, database and Redis passwords, the keys of nodes and of the gateway."""
    directory = suite.stack.directory
    found = [
        Canary.of_text(f"{path.parent.name} {path.name}", path.read_text().strip())
        for pattern in ("tokens/*/pin", "tokens/*/so-pin", "secrets/*/*password", "secrets/database-password")
        for path in sorted(directory.glob(pattern))
    ]
    password = _redis_url(suite).partition("@")[0].rpartition(":")[2]
    found.append(Canary.of_text("Redis password", password))
    nodes = json.loads(Path(suite.stack.record["nodes_file"]).read_text())
    found += [Canary.of_text(f"key of {node['name']}", node["url"].partition("key=")[2]) for node in nodes]
    found += [
        Canary.of_bytes(name, (directory / "secrets" / name).read_bytes())
        for name in ("telemetry-hmac-key", "gateway-encryption-key")
    ]
    # Two PINs of three tokens, two passwords of each role and the superuser's, Redis, three nodes, two keys.
    assert len(found) == 6 + 2 * len(SERVICE_NAMES) + 1 + 1 + 3 + 2
    assert all(len(canary.text) >= 16 for canary in found)
    return found


def _api_tokens(files: list[Path]) -> list[Canary]:
    return [Canary.of_text(f"token {path.name}", path.read_text().strip().split("_", 2)[2]) for path in files]


def _keys(mnemonic: str, address: str) -> list[Canary]:
    """The mnemonic, its seed and the account's private key, which is shown to be that account's."""
    seed = seed_of_mnemonic(Mnemonic(mnemonic))
    path = AccountPath(Algorithm.ECDSA_SECP256K1, 0, 0, ACCOUNT_INDEX)
    leaf = derive(seed, path.algorithm, path.indices())
    assert address_of_public_key(leaf.public_key) == bytes.fromhex(address[2:])
    return [
        Canary.of_text("mnemonic", mnemonic),
        Canary.of_text("end of the mnemonic", " ".join(mnemonic.split()[-4:])),
        Canary.of_bytes("seed", seed),
        Canary.of_bytes("private key", leaf.private_key),
        Canary.of_text("private key in decimal", str(int.from_bytes(leaf.private_key, "big"))),
    ]


def _redis_url(suite: Suite) -> str:
    return Path(suite.stack.record["redis_url_file"]).read_text().strip()


def _redis_content(suite: Suite) -> bytes:
    """Every key with its value."""
    content = bytearray()
    with redis.Redis.from_url(_redis_url(suite)) as client:
        for key in client.scan_iter():
            content += key + b" " + (client.dump(key) or b"") + b"\n"
    return bytes(content)


def _command_lines() -> bytes:
    return _read_all(Path("/proc").glob("[0-9]*/cmdline"))


def _environments(suite: Suite) -> bytes:
    return _read_all(Path(f"/proc/{process['pid']}/environ") for process in suite.stack.record["processes"])


def _read_all(paths: Iterator[Path]) -> bytes:
    content = bytearray()
    for path in paths:
        try:
            content += path.read_bytes() + b"\n"
        except OSError:
            continue  # it has ended meanwhile
    return bytes(content)


def test_the_canaries_were_alive(run: Run) -> None:
    """Without this the others would prove nothing: what is looked for was really in use."""
    by_state = [transfer["state"] for transfer in run.transfers]
    assert by_state == ["FINALIZED"] * 4 + ["FAILED", "FINALIZED"]
    bodies = json.dumps([entry["body"] for transfer in run.transfers for entry in run.suite.link(transfer)["entries"]])
    names = {canary.name for canary in [*run.personal, *run.on_chain] if canary.is_in(bodies.encode())}
    # The user agent is kept as a fingerprint.
    assert names == {canary.name for canary in [*run.personal, *run.on_chain]} - {"user agent"}
    assert b'"set" "nonce:' in run.redis.lower()


def test_nothing_is_in_a_span(run: Run) -> None:
    last = run.transfers[-1]
    until(lambda: stored_spans(run.suite, last["trace_id"]) or None, "the last trace is stored", 10.0)
    time.sleep(1.0)  # what is still on its way, five times the exporter's delay
    places = {"spans": stored_bytes(run.suite)}
    assert b"wallet.account.id" in places["spans"]
    assert leaked([*run.secrets, *run.personal, *run.on_chain], places) == []


def test_nothing_is_in_a_log(run: Run) -> None:
    logs = {path.name: path.read_bytes() for path in (run.suite.stack.directory / "logs").iterdir()}
    assert {f"{service}.jsonl" for service in SERVICE_NAMES} <= logs.keys()
    # The development chain prints what is on the chain.
    chain = {"anvil.log": logs.pop("anvil.log")}
    assert leaked([*run.secrets, *run.personal, *run.on_chain], logs) == []
    assert leaked([*run.secrets, *run.personal], chain) == []


def test_nothing_is_in_a_metric(run: Run) -> None:
    """Nor whose transfer it was: what is counted is about no one."""
    places = {f"{process}, {name}": text.encode() for (process, name), text in all_metrics(run.suite).items()}
    assert len(places) == 2 * len(SERVICE_NAMES)
    named = [Canary.of_text(f"{name} of a transfer", t[name]) for t in run.transfers for name in ("id", "account_id")]
    assert leaked([*run.secrets, *run.personal, *run.on_chain, *named], places) == []


def test_services_print_nothing_but_log_records(run: Run) -> None:
    lines = [(service, line) for service in SERVICE_NAMES for line in run.suite.log_lines(service)]
    assert {"gateway", "broadcaster", "evidence"} <= {service for service, _ in lines}
    for service, line in lines:
        assert line["service"] == service
        assert {"at", "level", "logger", "message"} <= line.keys()


def test_nothing_is_in_redis(run: Run) -> None:
    assert leaked([*run.secrets, *run.personal, *run.on_chain], {"Redis": run.redis}) == []


def test_nothing_is_in_a_process_listing(run: Run) -> None:
    assert b"services.signer" in run.processes
    assert leaked([*run.secrets, *run.personal, *run.on_chain], {"command lines and environments": run.processes}) == []


def test_nothing_personal_is_in_a_clear_column_of_the_gateway(run: Run) -> None:
    tables = ("transfers", "transfer_events", "idempotency_keys", "workers", "follow")
    places = {table: run.suite.database(f"SELECT to_jsonb(t) FROM gateway.{table} t").encode() for table in tables}
    assert leaked([*run.secrets, *run.personal], places) == []
    # What was encrypted went when the intent was entered.
    ids = ", ".join(f"'{transfer['id']}'" for transfer in run.transfers)
    kept = f"SELECT count(*) FROM gateway.transfers WHERE personal IS NOT NULL AND transfer_id IN ({ids})"
    assert run.suite.database(kept) == "0"


def test_nothing_secret_is_in_any_table(run: Run) -> None:
    tables = run.suite.database(
        "SELECT schemaname || '.' || tablename FROM pg_tables"
        f" WHERE schemaname IN ({', '.join(repr(service) for service in SERVICE_NAMES)})"
    ).splitlines()
    assert "evidence.entries" in tables
    places = {table: run.suite.database(f"SELECT to_jsonb(t) FROM {table} t").encode() for table in tables}
    assert leaked(run.secrets, places) == []


def test_the_personal_fields_of_an_open_row_are_encrypted(run: Run) -> None:
    suite = run.suite
    account = suite.make_account()
    suite.kill("signer")
    try:
        with suite.client(suite.make_token(ACTOR, "operator"), CLIENT_IP) as http:
            body = {"account_id": account["id"], "to": somebody(), "value_wei": "1"}
            transfer = suite.post(body, http=http).json()
        row = suite.database(f"SELECT to_jsonb(t) FROM gateway.transfers t WHERE transfer_id = '{transfer['id']}'")
        assert json.loads(row)["personal"].startswith("\\x")
        assert leaked(run.personal, {"row": row.encode()}) == []
    finally:
        suite.heal()
    (intent, *_) = suite.link(suite.until_state(transfer, "FINALIZED"))["entries"]
    assert (intent["body"]["actor"], intent["body"]["source_ip"]) == (ACTOR, CLIENT_IP)
