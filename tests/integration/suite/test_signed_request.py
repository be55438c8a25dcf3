"""A request that its client signed: the signature starts the golden link, and stands in the proof."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.integration.suite.running_suite import Suite, somebody
from tools.goldenlink.signing import RequestSigner


def test_the_proof_names_the_clients_key(suite: Suite, account: dict[str, Any], tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    pem = tmp_path / "alice.pem"
    pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    token_file = suite.make_token("alice", "operator", public_key=pem)
    body = {"account_id": account["id"], "to": somebody(), "value_wei": "1"}
    signer = RequestSigner(key)
    with suite.client(token_file) as http:
        unsigned = suite.post(body, http=http)
        assert (unsigned.status_code, unsigned.json()["reason"]) == (401, "REQUEST_SIGNATURE_INVALID")
        http.auth = signer
        accepted = suite.post(body, "order-1", http=http)
    assert accepted.status_code == 202, accepted.text
    transfer = suite.until_state(accepted.json(), "FINALIZED")
    report = suite.proves(transfer)
    assert report.accepted, report.checks
    assert report.client_key == signer.fingerprint
    intent = suite.link(transfer)["entries"][0]["body"]
    assert intent["actor"] == "alice"
    assert intent["client_signature"]["content_sha256"] == "0x" + hashlib.sha256(accepted.request.content).hexdigest()
    assert b'"idempotency-key": order-1\n' in bytes.fromhex(intent["client_signature"]["signature_base"][2:])


def test_a_refusal_is_signed_for_as_well(suite: Suite, account: dict[str, Any], tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    pem = tmp_path / "bob.pem"
    pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with suite.client(suite.make_token("bob", "operator", public_key=pem)) as http:
        http.auth = RequestSigner(key)
        body = {"account_id": account["id"], "to": somebody(), "value_wei": str(2_000 * 10**18)}
        denied = suite.until_state(suite.post(body, http=http).json(), "FAILED")
    assert denied["failure"]["reason"] == "POLICY_DENIED"
    assert suite.proves(denied).client_key == RequestSigner(key).fingerprint
