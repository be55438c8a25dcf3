"""A signed request kept in the log: what it proves to somebody who has only the key's fingerprint."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.core.canonical import canonical_json, parse_canonical, to_hex
from services.core.client_keys import ClientKey
from services.core.errors import Reason, WalletError
from services.core.signed_requests import (
    SignedRequest,
    check_signed_hash,
    check_signed_request,
    read_signed_request,
)
from tests.fakes.approver import SigningApprover

BOB, EVE = SigningApprover(), SigningApprover()
PATH = "/v1/transfers/t-1:approve"
TERMS = b"\x07" * 32
CONTENT = f'{{"terms_sha256": "{to_hex(TERMS)}"}}'.encode()


def rule(signed: SignedRequest, fingerprint: str = BOB.fingerprint) -> str | None:
    """The rule that it breaks, or None."""
    try:
        check_signed_request(signed, fingerprint, [PATH])
        check_signed_hash(signed, "terms_sha256", TERMS)
    except WalletError as error:
        return f"{error.details['rule']}" if error.reason is Reason.REQUEST_SIGNATURE_INVALID else error.reason.name
    return None


def test_it_comes_back_from_a_body_and_proves_the_same() -> None:
    signed = BOB.request(PATH, CONTENT, parameters={"created": 1_700_000_000, "expires": 1_700_000_060, "nonce": "n"})
    body = canonical_json({"client_signature": signed.document()})
    assert read_signed_request(parse_canonical(body)["client_signature"]) == signed
    times = check_signed_request(signed, BOB.fingerprint, [PATH])
    assert times.created_at == datetime.fromtimestamp(1_700_000_000, UTC)
    assert times.expires_at == datetime.fromtimestamp(1_700_000_060, UTC)
    assert rule(signed) is None


@pytest.mark.parametrize(
    "components",
    [
        {},
        {"@authority": None, "@path": None, "@query": None, "@target-uri": f"https://wallet.example{PATH}"},
        {"@target-uri": f"http://wallet.example:8080{PATH}"},
        {"@path": "/v1/transfers/t%2D1:approve"},
        {"idempotency-key": "k", "content-type": "application/json"},
        {"content-digest": f"sha-512=:{base64.b64encode(hashlib.sha512(CONTENT).digest()).decode()}:"},
    ],
)
def test_whatever_a_client_may_cover_is_read(components: dict[str, Any]) -> None:
    assert rule(BOB.request(PATH, CONTENT, components)) is None


@pytest.mark.parametrize(
    ("components", "broken"),
    [
        ({"@path": "/v1/transfers/t-2:approve"}, "is of POST"),
        ({"@path": "/v1/transfers/t-1:reject"}, "is of POST"),
        ({"@path": "/v1/transfers/t-1:approve/"}, "is of POST"),
        ({"@path": None}, "is of POST"),
        ({"@target-uri": "https://wallet.example/v1/transfers/t-2:approve"}, "is of POST"),
        ({"@target-uri": f"https://wallet.example{PATH}?x=1"}, "without a query"),
        ({"@target-uri": "https://[wallet"}, "absolute"),
        ({"@query": "?x=1"}, "without a query"),
        ({"@method": "GET"}, "is of POST"),
        ({"@method": None}, "is of POST"),
        ({"content-digest": None}, "covers content-digest"),
        ({"content-digest": "md5=:AAAA:"}, "of the content"),
        ({"content-digest": "sha-256=:AAAA:"}, "of the content"),
    ],
)
def test_what_was_signed_for_something_else_is_no_approval(components: dict[str, Any], broken: str) -> None:
    assert broken in (rule(BOB.request(PATH, CONTENT, components)) or "")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'[["terms_sha256", "x"]]',
        b"\xff",
        b"[" * 4_000,
        CONTENT.replace(b"0707", b"0708", 1),
        b'{"terms_sha256": 7}',
        CONTENT.replace(b"}", b', "decision": "reject"}'),
        CONTENT.replace(b"{", b'{"terms_sha256": "0x", '),
        b'{"x": ' + CONTENT + b"}",
    ],
)
def test_another_content_binds_no_terms(content: bytes) -> None:
    assert rule(BOB.request(PATH, content)) is not None
    assert rule(BOB.request(PATH, CONTENT)._replace(content=content)) is not None


def test_only_the_named_key_counts() -> None:
    signed = BOB.request(PATH, CONTENT)
    assert rule(EVE.request(PATH, CONTENT)) == "is made by the key that the policy names"
    assert rule(EVE.request(PATH, CONTENT, parameters={"keyid": BOB.fingerprint})._replace(key=BOB.key)) is not None
    assert rule(signed._replace(base=signed.base.replace(b"wallet", b"wallot"))) == "verifies over its base"
    assert rule(signed._replace(signature=bytes(64))) == "verifies over its base"
    assert "keyid" in (rule(BOB.request(PATH, CONTENT, parameters={"keyid": EVE.fingerprint})) or "")
    assert "tag" in (rule(BOB.request(PATH, CONTENT, parameters={"tag": "elsewhere"})) or "")
    for created in (None, "yesterday", 10**14):
        assert "created" in (rule(BOB.request(PATH, CONTENT, parameters={"created": created})) or "")


def test_a_base_that_could_be_read_in_two_ways_is_refused() -> None:
    good = BOB.request(PATH, CONTENT).base
    lines = good.split(b"\n")
    for base in (
        b"",
        b"\xff" + good,
        good + b"\n",
        b"\n".join(lines[:-1]),
        b"\n".join(lines[1:]),
        b"\n".join([lines[0], *lines]),
        b"\n".join([lines[1], lines[0], *lines[2:]]),
        # A header field that brings a line of its own.
        good.replace(b"wallet.example", b'wallet.example\n"@path": /v1/transfers/t-1:approve'),
        good.replace(b'("@method"', b'("@method" "@method"'),
        good.replace(b'("@method"', b'("@method";req'),
        good.replace(b";created", b";tag=1;created"),
        good.replace(b'"@signature-params": (', b'"@signature-params":  ('),
        good.replace(b'"@signature-params": (', b'"@signature-params": "a", ('),
        good.replace(b'"@signature-params": (', b'"@signature-params": 5, ('),
    ):
        assert rule(BOB.sign(base, CONTENT)) is not None, base


def test_p256_proves_as_well() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    key = ClientKey(private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    base = BOB.request(PATH, CONTENT, parameters={"keyid": key.fingerprint}).base
    r, s = decode_dss_signature(private.sign(base, ec.ECDSA(SHA256())))
    signed = SignedRequest(key, base, r.to_bytes(32, "big") + s.to_bytes(32, "big"), CONTENT)
    assert rule(read_signed_request(signed.document()), key.fingerprint) is None


def test_what_is_no_kept_request_is_refused() -> None:
    good = BOB.request(PATH, CONTENT).document()
    other = rsa.generate_private_key(65537, 1024).public_key()
    foreign = other.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for changes in (
        {"public_key": to_hex(foreign)},
        {"public_key": "0x00"},
        {"public_key": EVE.request(PATH).document()["public_key"]},
        {"key_fingerprint": EVE.fingerprint},
        {"algorithm": "ecdsa-p256-sha256"},
        {"content_sha256": to_hex(bytes(32))},
        {"content": "0x" + "00" * 4_097},
        {"signature_base": "0x" + "00" * 4_097},
        {"signature": "no hex"},
        {"signature": 7},
    ):
        with pytest.raises(WalletError):
            read_signed_request(good | changes)
    for name in good:
        with pytest.raises(WalletError):
            read_signed_request({one: value for one, value in good.items() if one != name})
    for nothing in (None, 7, "text", [], {}):
        with pytest.raises(WalletError):
            read_signed_request(nothing)
