"""Two processes of every service: they share the calls, and what one leaves in the middle the other finishes."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from protos.wallet.v1.keys_pb2 import GetWalletRequest
from protos.wallet.v1.keys_pb2_grpc import KeysStub
from protos.wallet.v1.signer_pb2 import GetPolicyRequest
from protos.wallet.v1.signer_pb2_grpc import SignerStub
from services.core.errors import Reason, WalletError
from services.runtime.channel import PeerChannel, as_channel
from services.runtime.settings import ServiceSettings
from tests.integration.dependencies import run_to_end
from tests.integration.suite.running_suite import Suite, somebody, until
from tests.integration.suite.stored_spans import stored_spans
from tests.integration.suite.test_faults import accepted, batch_of, sent_once_each
from tools.stack.options import External, StackOptions
from tools.stack.processes import ProcessIdentity, StackError
from tools.stack.services import SERVICE_NAMES
from tools.stack.stack import Stack

# Spans are stored soon after they end, so that tests need not wait the exporter's five seconds. Unit: ms.
_EXPORT_SOON = {"OTEL_BSP_SCHEDULE_DELAY": "200"}
BATCH = 50
PROCESSES = {name for service in SERVICE_NAMES for name in (service, f"{service}-1")}
# What a replica logs when it takes the lease, by service.
TAKES_OVER = {"evidence": "sequencing", "broadcaster": "leading"}


@pytest.fixture(scope="module")
def suite() -> Iterator[Suite]:
    # Not under pytest's temporary directory: every test run that starts closes that to PostgreSQL's user.
    directory = Path(tempfile.mkdtemp(prefix="goldenlink-replicas-"))
    directory.chmod(0o755)
    options = StackOptions(
        block_time_s=0.5,
        supervised=True,
        replicas=dict.fromkeys(SERVICE_NAMES, 2),
        environment=dict.fromkeys(SERVICE_NAMES, _EXPORT_SOON),
        external=External(),
    )
    stack = Stack(directory / "stack", options)
    try:
        run_to_end(stack.start())
        started = [ProcessIdentity.from_record(path) for path in (stack.directory / "run").iterdir()]
        try:
            yield Suite(stack)
        finally:
            run_to_end(stack.stop())
        assert len(started) == len(PROCESSES) + 4
        assert not any(process.is_alive() for process in started if process is not None)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def healed(suite: Suite) -> Iterator[None]:
    yield
    for name in sorted(PROCESSES):
        if not suite.stack.is_running(name):
            suite.launch(name)


def certificate(suite: Suite, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((suite.stack.foundation.tls / name / "cert.pem").read_bytes())


def names(held: x509.Certificate) -> x509.SubjectAlternativeName:
    return held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_every_replica_is_a_process_with_ports_and_a_key_of_its_own(suite: Suite) -> None:
    record = suite.stack.record
    processes = [process for process in record["processes"] if process["name"] in PROCESSES]
    assert {process["name"] for process in processes} == PROCESSES == record["services"].keys()
    ports = [port for process in processes for port in process["ports"].values()]
    assert len(set(ports)) == len(ports) == 2 * len(SERVICE_NAMES) + 2
    for service in SERVICE_NAMES:
        first, second = certificate(suite, service), certificate(suite, f"{service}-1")
        assert names(first) == names(second)
        assert first.public_key() != second.public_key()
    # Signers share nothing.
    assert suite.database("SELECT count(DISTINCT token_serial) FROM keys.transport_keys") == "2"
    assert record["gateway_urls"][0] == record["gateway_url"]
    for url in record["gateway_urls"]:
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    notes = {httpx.get(f"{url}/checkpoint", trust_env=False).text.splitlines()[0] for url in record["tiles_urls"]}
    assert notes == {"goldenlink.example/log"}


async def test_a_peer_has_several_addresses_and_one_identity(suite: Suite) -> None:
    foundation = suite.stack.foundation
    target = foundation.peers["signer"]
    assert target == f"ipv4:{foundation.addresses['signer']},{foundation.addresses['signer-1']}"

    async def answers(peer: str, at: str) -> Reason | None:
        channel = PeerChannel(peer, ServiceSettings(tls_dir=foundation.tls / "gateway", peers={peer: at}))
        try:
            if peer == "signer":
                await SignerStub(as_channel(channel)).GetPolicy(GetPolicyRequest(), timeout=5.0)
            else:
                await KeysStub(as_channel(channel)).GetWallet(GetWalletRequest(wallet_id="w"), timeout=5.0)
        except WalletError as error:
            return error.reason
        finally:
            await channel.close()
        return None

    for killed in (("signer", 0), ("signer", 1)):
        pid = suite.stack.pid(killed)
        assert await answers("signer", target) is None
        await suite.stack.kill(killed)
        with pytest.raises(StackError, match="does not run"):
            suite.stack.pid(killed)
        assert await answers("signer", target) is None
        await suite.stack.launch(killed)
        assert suite.stack.pid(killed) != pid
    assert await answers("keys", foundation.peers["keys"]) is Reason.NOT_FOUND
    assert await answers("keys", target) is Reason.SERVICE_UNAVAILABLE


def test_what_one_replica_of_keys_seals_the_other_opens(suite: Suite) -> None:
    account = suite.make_account(ether=0)
    for killed in ("keys", "keys-1"):
        suite.kill(killed)
        body = {"chain_id": "eip155:31337", "index": 1 + len(killed)}
        path = f"/v1/wallets/{account['wallet_id']}/accounts"
        until(lambda path=path, body=body: suite.operator.post(path, json=body).is_success, "an account is derived")
        suite.launch(killed)


def make_wallets_and_ask_the_status(suite: Suite) -> list[object]:
    """What 30 requests of each kind were answered that should not have been, at both gateways in turn."""
    wrong: list[object] = []
    for turn in range(30):
        suite.operator.base_url = suite.stack.gateway_urls[turn % 2]
        made = suite.operator.post("/v1/wallets", json={"name": "w"})
        if made.status_code != 201:
            wrong.append((made.status_code, made.json()["reason"]))
        status = suite.operator.get("/v1/status").json()
        if not status["can_sign"]:
            wrong.append(status["missing"])
    return wrong


def test_callers_never_meet_the_standby_of_the_log(suite: Suite) -> None:
    assert make_wallets_and_ask_the_status(suite) == []
    holder = last_takeover(suite, "evidence")
    suite.kill(holder)
    killed = time.monotonic()
    # In between, a request waits for the log; longer than a request's time it may not have to.
    until(lambda: suite.operator.post("/v1/wallets", json={"name": "w"}).is_success, "a wallet is made", 5.0)
    until(lambda: suite.operator.get("/v1/status").json()["can_sign"], "a signature could be made", 5.0)
    assert time.monotonic() - killed < 5
    assert last_takeover(suite, "evidence") != holder
    assert make_wallets_and_ask_the_status(suite) == []
    # Back, as the standby.
    suite.launch(holder)
    assert make_wallets_and_ask_the_status(suite) == []


def last_takeover(suite: Suite, service: str) -> str:
    """The replica that took the service's lease last, by what the replicas log."""
    taken = [
        (line["at"], name)
        for name in (service, f"{service}-1")
        for line in suite.log_lines(name)
        if line["message"] == TAKES_OVER[service]
    ]
    return max(taken)[1]


@pytest.mark.parametrize("index", [0, 1])
def test_a_batch_survives_the_sigkill_of_one_replica_of_each_service(suite: Suite, index: int) -> None:
    account, receiver = suite.make_account(), somebody()
    killed, left = (
        tuple(service if i == 0 else f"{service}-1" for service in SERVICE_NAMES) for i in (index, 1 - index)
    )
    # The leases are with those that are killed: the first to start, then those that took over from them.
    for service in TAKES_OVER:
        if last_takeover(suite, service) not in killed:
            suite.restart(next(name for name in left if name.startswith(service)))
            until(lambda service=service: last_takeover(suite, service) in killed, f"{service} is led by the other")
    suite.operator.base_url = suite.stack.gateway_urls[index]
    transfers = suite.send_batch(batch_of(account, BATCH, receiver))
    # At whichever step of the batch that is: within a second it goes from ACCEPTED to SUBMITTED.
    time.sleep(secrets.randbelow(800) / 1000)

    async def kill() -> None:
        await asyncio.gather(*(suite.stack.kill((service, index)) for service in SERVICE_NAMES))

    asyncio.run(kill())
    suite.operator.base_url = suite.stack.gateway_urls[1 - index]
    accepted(suite, transfers)
    sent_once_each(suite, account, receiver, BATCH)
    assert all(last_takeover(suite, service) in left for service in TAKES_OVER)
    # Those that are left make a whole trace.
    after = suite.finalized(account)
    spans = until(lambda: traced(suite, after["trace_id"]), "the trace is stored", 10.0)
    assert spans == set(SERVICE_NAMES) - {"tracestore"}


def traced(suite: Suite, trace_id: str) -> set[str] | None:
    """Services with a span in this trace, once they are six."""
    found = {span.service for span in stored_spans(suite, trace_id)}
    return found if len(found) == len(SERVICE_NAMES) - 1 else None


def test_the_settings_of_a_replica_are_those_of_its_service_but_for_what_is_its_own(suite: Suite) -> None:
    for service in SERVICE_NAMES:
        first, second = (
            json.loads(Path(suite.stack.record["services"][name]["environment_file"]).read_text())
            for name in (service, f"{service}-1")
        )
        own = {
            "WALLET_TLS_DIR",
            "WALLET_SECRETS_DIR",
            "WALLET_SPOOL_DIR",
            "WALLET_HTTP_LISTEN" if service == "gateway" else "WALLET_LISTEN",
        }
        if service == "evidence":
            own.add("WALLET_TILES_LISTEN")
        if service in ("evidence", "keys", "signer"):
            own |= {"WALLET_TOKEN_PIN_FILE", "SOFTHSM2_CONF"}
        if service == "signer":
            own.add("WALLET_TOKEN_LABEL")
        assert {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)} == own


def test_replicas_of_what_is_no_service_are_refused() -> None:
    for wrong in ({"postgres": 2}, {"signer": 0}):
        with pytest.raises(StackError, match="replicas"):
            StackOptions(replicas=wrong)
