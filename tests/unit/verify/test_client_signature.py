"""A client's own signature in the intent is verified anew, with what the intent holds."""

from __future__ import annotations

import base64
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.unit.verify.forge import Tx, hexed, plain_link
from tests.unit.verify.verdict import failed, link_verdict, why

BODY = b'{"account_id":"a","to":"0x1111111111111111111111111111111111111111","value_wei":"1"}'
ED25519 = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
P256 = ec.derive_private_key(7, ec.SECP256R1())


def sign(key: Any, message: bytes) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def client_signature(key: Any = ED25519, lines: list[str] | None = None) -> dict[str, str]:
    public_key = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = f"sha-256=:{base64.b64encode(sha256(BODY).digest()).decode()}:"
    lines = lines if lines is not None else [f'"content-digest": {digest}']
    base = "\n".join(['"@method": POST', *lines, '"@signature-params": ("@method" "content-digest")']).encode()
    return {
        "algorithm": "ed25519" if key is ED25519 else "ecdsa-p256-sha256",
        "content_sha256": hexed(sha256(BODY).digest()),
        "key_fingerprint": "sha256:" + sha256(public_key).hexdigest(),
        "public_key": hexed(public_key),
        "signature": hexed(sign(key, base)),
        "signature_base": hexed(base),
    }


def report_of(signed: Any, fingerprint: str | None = None) -> Any:
    drafts = plain_link(Tx())
    drafts[0].body |= {"client_signature": signed, "client_fingerprint": fingerprint or signed["key_fingerprint"]}
    return link_verdict(drafts)


@pytest.mark.parametrize("key", [ED25519, P256])
def test_a_signed_request_is_named_in_the_report(key: Any) -> None:
    signed = client_signature(key)
    report = report_of(signed)
    assert report.accepted
    assert report.client_key == signed["key_fingerprint"]
    assert signed["key_fingerprint"] in report.checks[6].detail


def test_without_one_nothing_is_named() -> None:
    assert link_verdict(plain_link(Tx())).client_key is None


def test_a_digest_that_is_not_compared_here_is_no_hindrance() -> None:
    assert report_of(client_signature(lines=['"content-digest": sha-512=:AAAA:'])).accepted


OTHER = client_signature(P256)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s | {"signature": hexed(bytes(64))}, "does not verify"),
        (lambda s: s | {"signature_base": s["signature_base"] + "00"}, "does not verify"),
        (lambda s: s | {"signature": OTHER["signature"]}, "does not verify"),
        (lambda s: s | {"public_key": OTHER["public_key"]}, "is not SHA-256(public_key)"),
        (lambda s: s | {"key_fingerprint": OTHER["key_fingerprint"]}, "is not SHA-256(public_key)"),
        (lambda s: s | {"algorithm": "ecdsa-p256-sha256"}, "its key another's"),
        (lambda s: s | {"algorithm": "none"}, "its key another's"),
        (lambda s: s | {"content_sha256": hexed(bytes(32))}, "is not the body's"),
        (lambda s: s | {"content_sha256": hexed(bytes(31))}, "31 bytes"),
        (lambda s: s | {"signature": hexed(bytes(63))}, "63 bytes"),
        (lambda s: {name: value for name, value in s.items() if name != "signature"}, "lacks the member"),
        (lambda s: client_signature(lines=[]), "does not cover the body"),
        (lambda s: client_signature(lines=['"x": ' + "y" * 4_096]), "more than 4096"),
    ],
)
def test_what_does_not_hold_is_rejected(change: Callable[[dict[str, str]], dict[str, str]], reason: str) -> None:
    signed = change(client_signature())
    report = report_of(signed)
    assert 7 in failed(report) or 2 in failed(report)
    assert reason in next(check.detail for check in report.checks if not check.ok)


def test_a_key_that_is_none_is_rejected() -> None:
    junk = hexed(b"\x30\x00")
    signed = client_signature() | {
        "public_key": junk,
        "key_fingerprint": "sha256:" + sha256(b"\x30\x00").hexdigest(),
    }
    assert "no public key" in next(check.detail for check in report_of(signed).checks if not check.ok)


def test_the_fingerprint_of_the_intent_is_that_of_the_key() -> None:
    report = report_of(client_signature(), "sha256:00")
    assert failed(report)[0] == 7
    assert "client_fingerprint" in why(report)


@pytest.mark.parametrize("junk", [{}, [], "", 0, False, "text"])
def test_what_is_no_signature_is_not_passed_over(junk: Any) -> None:
    assert not report_of(junk, "sha256:00").accepted
