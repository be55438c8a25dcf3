"""Signed requests: a client's key, registered by command, binds what its credential may change."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

from protos.wallet.v1 import signer_pb2
from services.core.canonical import parse_canonical
from services.core.signed_requests import check_signed_hash, check_signed_request, read_signed_request
from services.gateway import credentials
from services.gateway.credentials import Role
from services.gateway.token_command import run_token_command, token_parser
from tests.fakes.signer import APPROVED_VALUE_WEI
from tests.integration.gateway_harness import Bench, Client, plain
from tools.goldenlink import client as command_client
from tools.goldenlink.exits import Failure
from tools.goldenlink.signing import KEY_FILE_VARIABLE, RequestSigner


@pytest.fixture(autouse=True)
def keys_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are added or revoked."""
    monkeypatch.setattr(credentials, "_CACHE_S", 0.0)


def key_file(directory: Path, key: Ed25519PrivateKey) -> Path:
    path = directory / f"key-{secrets.token_hex(4)}.pem"
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


class Signatory:
    """Somebody with a token and a key; `http` signs with the command line's own code."""

    def __init__(self, bench: Bench, client: Client, key: Ed25519PrivateKey, token_file: Path, name: str) -> None:
        self._bench = bench
        self.credential_id = name
        self.signer = RequestSigner(key)
        self.token_file = token_file
        self.http = self.http_with(self.signer)
        self.http.base_url = client.http.base_url
        self.unsigned = self.http_with(None)
        self.unsigned.base_url = client.http.base_url

    def http_with(self, auth: httpx.Auth | None) -> httpx.AsyncClient:
        bearer = {"Authorization": f"Bearer {self.token_file.read_text().strip()}"}
        return httpx.AsyncClient(headers=bearer, auth=auth, timeout=20.0)

    async def command(self, *arguments: str) -> int:
        return await run_token_command(token_parser().parse_args(arguments), self._bench.database.owner_settings)


@asynccontextmanager
async def signatory(bench: Bench, client: Client, directory: Path, name: str, role: str) -> AsyncIterator[Signatory]:
    key, out = Ed25519PrivateKey.generate(), directory / f"{name}-token"
    made = token_parser().parse_args(
        [
            *("create", "--name", name, "--role", role, "--out", str(out)),
            *("--public-key", str(key_file(directory, key))),
        ]
    )
    assert await run_token_command(made, bench.database.owner_settings) == 0
    person = Signatory(bench, client, key, out, out.read_text().split("_")[1])
    yield person
    await person.http.aclose()
    await person.unsigned.aclose()


@pytest.fixture
async def alice(bench: Bench, client: Client, tmp_path: Path) -> AsyncIterator[Signatory]:
    async with signatory(bench, client, tmp_path, "alice", "operator") as person:
        yield person


@pytest.fixture
async def bob(bench: Bench, client: Client, tmp_path: Path) -> AsyncIterator[Signatory]:
    async with signatory(bench, client, tmp_path, "bob", "approver") as person:
        yield person


def refusal(response: httpx.Response, status: int = 401, reason: str = "REQUEST_SIGNATURE_INVALID") -> str:
    assert response.status_code == status, response.text
    problem = response.json()
    assert problem["reason"] == reason
    assert len(problem["errors"]) == 1
    return str(problem["errors"][0]["rule"])


def keyed(key: str | None = None) -> dict[str, str]:
    return {"Idempotency-Key": key or secrets.token_hex(8)}


async def test_the_clients_signature_starts_the_link(alice: Signatory, bench: Bench, client: Client) -> None:
    accepted = await alice.http.post("/v1/transfers", json=plain("5"), headers=keyed("order-7"))
    assert accepted.status_code == 202, accepted.text
    await client.until(accepted.json()["id"], "SUBMITTED")
    requester = bench.suite.signer.signed[accepted.json()["id"]].requester
    kept = requester.client_signature
    assert requester.actor == "alice"
    assert requester.client_fingerprint == kept.key_fingerprint == alice.signer.fingerprint
    # All that somebody needs who has only the log.
    assert "sha256:" + hashlib.sha256(kept.public_key).hexdigest() == kept.key_fingerprint
    key = load_der_public_key(kept.public_key)
    key.verify(kept.signature, kept.signature_base)  # type: ignore[union-attr, call-arg, arg-type]
    lines = kept.signature_base.decode().splitlines()
    assert lines[0] == '"@method": POST'
    assert '"@path": /v1/transfers' in lines
    assert '"idempotency-key": order-7' in lines
    body = accepted.request.content
    assert kept.content_sha256 == hashlib.sha256(body).digest()
    assert f'"content-digest": sha-256=:{base64.b64encode(kept.content_sha256).decode()}:' in lines


async def test_a_batch_keeps_the_signature_of_its_request_in_every_item(
    alice: Signatory, bench: Bench, client: Client
) -> None:
    body = {"transfers": [plain("1"), plain("2")]}
    accepted = await alice.http.post("/v1/transfers:batch", json=body, headers=keyed())
    assert accepted.status_code == 202, accepted.text
    for transfer in accepted.json()["transfers"]:
        await client.until(transfer["id"], "SUBMITTED")
    kept = [
        bench.suite.signer.signed[t["id"]].requester.client_signature.signature_base
        for t in accepted.json()["transfers"]
    ]
    assert kept[0] == kept[1]
    assert b'"@path": /v1/transfers:batch\n' in kept[0]


async def test_who_has_a_key_signs_what_changes_something(alice: Signatory) -> None:
    assert "is required" in refusal(await alice.unsigned.post("/v1/transfers", json=plain(), headers=keyed()))
    assert "is required" in refusal(await alice.unsigned.post("/v1/wallets", json={}))
    assert (await alice.unsigned.get("/v1/transfers")).json()["transfers"] == []


async def test_whoever_has_the_token_alone_changes_nothing(alice: Signatory) -> None:
    async with alice.http_with(RequestSigner(Ed25519PrivateKey.generate())) as thief:
        thief.base_url = alice.http.base_url
        answer = await thief.post("/v1/transfers", json=plain(), headers=keyed())
    assert "registered for this credential" in refusal(answer)


async def test_a_signed_request_altered_on_its_way_is_refused(alice: Signatory) -> None:
    request = alice.http.build_request("POST", "/v1/transfers", json=plain("1"), headers=keyed())
    (signed,) = alice.signer.auth_flow(request)
    headers = {name: value for name, value in signed.headers.items() if name != "content-length"}
    raised = json.dumps(plain("2")).encode()
    altered = await alice.unsigned.post("/v1/transfers", content=raised, headers=headers)
    assert refusal(altered, 400, "CONTENT_DIGEST_MISMATCH") == "is the sha-256 of the body as sent"
    digest = f"sha-256=:{base64.b64encode(hashlib.sha256(raised).digest()).decode()}:"
    headers["content-digest"] = digest
    redigested = await alice.unsigned.post("/v1/transfers", content=raised, headers=headers)
    assert "verifies over" in refusal(redigested)


async def test_the_same_signed_transfer_twice_is_one_transfer(alice: Signatory) -> None:
    request = alice.http.build_request("POST", "/v1/transfers", json=plain(), headers=keyed())
    (signed,) = alice.signer.auth_flow(request)
    first, second = [await alice.unsigned.send(signed) for _ in range(2)]
    assert first.status_code == second.status_code == 202
    assert first.json()["id"] == second.json()["id"]


async def test_a_signature_counts_once_where_no_key_makes_it_harmless(alice: Signatory) -> None:
    # The header is no protection on a route that does not read it.
    for headers in ({}, keyed()):
        request = alice.http.build_request("POST", "/v1/wallets", json={}, headers=headers)
        (signed,) = alice.signer.auth_flow(request)
        answers = await asyncio.gather(*(alice.unsigned.send(signed) for _ in range(4)))
        assert sorted(answer.status_code for answer in answers) == [201, 401, 401, 401]
        assert "counts once" in refusal(await alice.unsigned.send(signed))
    assert (await alice.http.post("/v1/wallets", json={})).status_code == 201


async def test_keys_come_and_go_by_command(
    alice: Signatory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = Ed25519PrivateKey.generate()
    pem = str(key_file(tmp_path, new))
    capsys.readouterr()
    assert await alice.command("add-key", "--id", alice.credential_id, "--public-key", pem) == 0
    assert capsys.readouterr().out.strip() == RequestSigner(new).fingerprint
    assert await alice.command("add-key", "--id", alice.credential_id, "--public-key", pem) == 1
    assert await alice.command("add-key", "--id", "0" * 16, "--public-key", str(key_file(tmp_path, new))) == 1
    async with alice.http_with(RequestSigner(new)) as renewed:
        renewed.base_url = alice.http.base_url
        assert (await renewed.post("/v1/transfers", json=plain(), headers=keyed())).status_code == 202
        assert await alice.command("revoke-key", "--fingerprint", alice.signer.fingerprint) == 0
        assert await alice.command("revoke-key", "--fingerprint", alice.signer.fingerprint) == 1
        refusal(await alice.http.post("/v1/transfers", json=plain(), headers=keyed()))
        assert (await renewed.post("/v1/transfers", json=plain(), headers=keyed())).status_code == 202
    # Without any key left the token changes nothing: losing the last key opens no door.
    assert await alice.command("revoke-key", "--fingerprint", RequestSigner(new).fingerprint) == 0
    refusal(await alice.unsigned.post("/v1/transfers", json=plain(), headers=keyed()))
    old = str(key_file(tmp_path, new))
    assert await alice.command("add-key", "--id", alice.credential_id, "--public-key", old) == 1


async def test_a_registered_key_serves_no_second_token(alice: Signatory, tmp_path: Path) -> None:
    pem = tmp_path / "copy.pem"
    pem.write_bytes(alice.signer._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    out = tmp_path / "second"
    made = await alice.command(
        *("create", "--name", "bob", "--role", "operator", "--out", str(out), "--public-key", str(pem))
    )
    assert made == 1
    assert not out.exists()


async def test_a_client_without_a_key_is_told_that_its_signature_counts_for_nothing(
    alice: Signatory, client: Client
) -> None:
    bearer = {"Authorization": client.http.headers["authorization"]}
    answer = await alice.http.post("/v1/transfers", json=plain(), headers={**keyed(), **bearer})
    assert "registered for this credential" in refusal(answer)


async def test_a_content_digest_is_checked_without_any_key(client: Client) -> None:
    body = json.dumps(plain()).encode()
    right = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"

    async def post(digest: str) -> httpx.Response:
        headers = {**keyed(), "Content-Type": "application/json", "Content-Digest": digest}
        return await client.http.post("/v1/transfers", content=body, headers=headers)

    assert (await post(right)).status_code == 202
    refusal(await post(right.replace(right[9:12], "AAA")), 400, "CONTENT_DIGEST_MISMATCH")
    assert "sha-256 or sha-512" in refusal(await post("md5=:AAAA:"), 400, "INVALID_REQUEST")
    # Without credentials as well: the body is not the one that was sent, whoever sent it.
    bare = await client.http.get("/healthz", headers={"Content-Digest": "sha-256=:AAAA:"})
    refusal(bare, 400, "CONTENT_DIGEST_MISMATCH")


async def test_the_command_line_signs(alice: Signatory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = tmp_path / "private.pem"
    private.write_bytes(alice.signer._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    url = str(alice.http.base_url)
    with pytest.raises(Failure, match="REQUEST_SIGNATURE_INVALID"):
        await asyncio.to_thread(command_client.connect(url, alice.token_file).post, "/v1/transfers", plain(), "k-1")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(private))
    connected = command_client.connect(url, alice.token_file)
    made = await asyncio.to_thread(connected.post, "/v1/transfers", plain(), "k-1")
    assert (await asyncio.to_thread(connected.get, f"/v1/transfers/{made['id']}"))["id"] == made["id"]
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(alice.token_file))
    with pytest.raises(Failure, match="private key in PEM"):
        command_client.connect(url, alice.token_file)


# -- Approvals


async def test_an_approval_keeps_its_signature_and_body(bob: Signatory, bench: Bench, client: Client) -> None:
    fingerprint = bob.signer.fingerprint
    bench.suite.signer.approval = signer_pb2.ApprovalRule(count=1, valid_s=3600, keys={"bob": fingerprint})
    transfer_id = (await client.post(plain(str(APPROVED_VALUE_WEI)))).json()["id"]
    waiting = await client.until(transfer_id, "AWAITING_APPROVAL")
    assert waiting["approval"]["keys"] == {"bob": fingerprint}
    path, body = f"/v1/transfers/{transfer_id}:approve", {"terms_sha256": waiting["terms_sha256"]}
    approved = await bob.http.post(path, json=body)
    assert approved.status_code == 200, approved.text
    # The same again, signed anew, is the same approval.
    assert (await bob.http.post(path, json=body)).json() == approved.json()
    await client.until(transfer_id, "SUBMITTED")
    (entry,) = bench.suite.evidence.appended
    signed = read_signed_request(parse_canonical(entry.body)["client_signature"])
    assert signed.content == approved.request.content
    check_signed_request(signed, fingerprint, [path])
    check_signed_hash(signed, "terms_sha256", bytes.fromhex(waiting["terms_sha256"][2:]))


async def test_whose_key_the_policy_names_approves_with_it_alone(
    alice: Signatory, bob: Signatory, bench: Bench, client: Client
) -> None:
    """His credential has a key, and the policy names another."""
    rule = signer_pb2.ApprovalRule(count=1, valid_s=3600, keys={"bob": alice.signer.fingerprint, "dan": "sha256:x"})
    bench.suite.signer.approval = rule
    transfer_id = (await client.post(plain(str(APPROVED_VALUE_WEI)))).json()["id"]
    terms = {"terms_sha256": (await client.until(transfer_id, "AWAITING_APPROVAL"))["terms_sha256"]}
    path = f"/v1/transfers/{transfer_id}:approve"
    assert refusal(await bob.http.post(path, json=terms)) == "is made by the key that the policy names"
    dan = {"Authorization": f"Bearer {await bench.token(Role.APPROVER, name='dan')}"}
    assert "the policy names" in refusal(await client.http.post(path, json=terms, headers=dan))
    too_long = json.dumps(terms).encode() + b" " * 5_000
    headers = {"Content-Type": "application/json"}
    refusal(await bob.http.post(path, content=too_long, headers=headers), 413, "PAYLOAD_TOO_LARGE")
    assert bench.suite.evidence.appended == []
    # Who rejects needs no key in the policy.
    assert (await bob.http.post(path.replace("approve", "reject"), json=terms)).status_code == 200
    await client.until(transfer_id, "FAILED")


async def test_a_policy_is_approved_by_whom_and_with_what_the_one_in_force_says(
    bob: Signatory, bench: Bench, client: Client
) -> None:
    fingerprint, signer = bob.signer.fingerprint, bench.suite.signer
    signer.policy = signer_pb2.Policy(
        version=3,
        changes=signer_pb2.ApprovalRule(
            count=2, approvers=["bob", "cid", "dan"], keys={"bob": fingerprint, "dan": "x"}
        ),
    )
    digest = hashlib.sha256(b"version: 4").hexdigest()
    assert (await client.http.post("/v1/policies", json={"document": "version: 4"})).status_code == 201
    bearer = {
        name: {"Authorization": f"Bearer {await bench.token(Role.APPROVER, name=name)}"}
        for name in ("ann", "cid", "dan")
    }
    path = f"/v1/policies/0x{digest}:approve"
    refusal(await client.http.post(path, headers=bearer["ann"]), 403, "ROLE_REQUIRED")
    assert "the policy names" in refusal(await client.http.post(path, headers=bearer["dan"]))
    # Named without the prefix it is the same document.
    approved = await bob.http.post(f"/v1/policies/{digest}:approve")
    assert approved.status_code == 200, approved.text
    done = await client.http.post(path, headers=bearer["cid"])
    assert done.json()["policy"]["state"] == "IN_FORCE"
    bodies = {one.entry_id: parse_canonical(one.body) for one in bench.suite.evidence.appended}
    signed = read_signed_request(bodies["approval:bob"]["client_signature"])
    check_signed_request(signed, fingerprint, [f"/v1/policies/{digest}:approve"])
    assert "client_signature" not in bodies["approval:cid"]
