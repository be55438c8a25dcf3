from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from http_sf import parse
from starlette.datastructures import Headers

from services.core.client_keys import Algorithm, ClientKey, read_public_key
from services.core.errors import Reason, WalletError
from services.gateway.http_signatures import MAX_AGE_S, SignableRequest, is_signed, signature_base, verify_request

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "rfc9421" / "vectors.json").read_text(encoding="utf-8"))
NOW = 1_700_000_000
BODY = b'{"hello": "world"}'
DIGEST = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"
COVERED = ["@method", "@authority", "@path", "@query", "content-digest", "idempotency-key"]

ED25519 = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
P256 = ec.derive_private_key(7, ec.SECP256R1())


def key_of(private: Any) -> ClientKey:
    return read_public_key(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


KEYS = (key_of(ED25519), key_of(P256))


def request(headers: dict[str, str] | None = None, **changes: Any) -> SignableRequest:
    fields = {"Host": "wallet.example:8080", "Content-Digest": DIGEST, "Idempotency-Key": "k-1", **(headers or {})}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
    return SignableRequest("POST", "http", "/v1/transfers", "", Headers(raw=raw))._replace(**changes)


def sign_bytes(private: Any, message: bytes) -> bytes:
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return private.sign(message)
    r, s = decode_dss_signature(private.sign(message, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def signed(
    private: Any = ED25519,
    covered: list[str] | None = None,
    unsigned: SignableRequest | None = None,
    label: str = "sig",
    **parameters: Any,
) -> SignableRequest:
    """The request with its signature; a parameter that is None is left out."""
    unsigned = unsigned or request()
    values = {"created": NOW, "keyid": key_of(private).fingerprint, "tag": "goldenlink", **parameters}
    names = COVERED if covered is None else covered
    inner = [(name, {}) for name in names], {name: value for name, value in values.items() if value is not None}
    base = signature_base(unsigned, inner)
    shown = base.rpartition(b'"@signature-params": ')[2].decode()
    signature = base64.b64encode(sign_bytes(private, base)).decode()
    added = [(b"signature-input", f"{label}={shown}".encode()), (b"signature", f"{label}=:{signature}:".encode())]
    return unsigned._replace(headers=Headers(raw=unsigned.headers.raw + added))


def with_headers(signed_request: SignableRequest, **changes: str | None) -> SignableRequest:
    names = {name.replace("_", "-"): value for name, value in changes.items()}
    kept = [(name, value) for name, value in signed_request.headers.raw if name.decode() not in names]
    added = [(name.encode(), value.encode("latin-1")) for name, value in names.items() if value is not None]
    return signed_request._replace(headers=Headers(raw=kept + added))


def refusal(tried: SignableRequest, keys: tuple[ClientKey, ...] = KEYS, now: float = NOW) -> str:
    with pytest.raises(WalletError) as refused:
        verify_request(tried, BODY, keys, now)
    assert refused.value.reason is Reason.REQUEST_SIGNATURE_INVALID
    assert refused.value.details["field"] in ("Signature", "Signature-Input", "Host")
    return str(refused.value.details["rule"])


# -- The RFC's examples


@pytest.mark.parametrize("name", VECTORS["requests"])
def test_bases_and_signatures_of_the_rfc(name: str) -> None:
    vector = VECTORS["requests"][name]
    raw = [(field.lower().encode(), value.encode()) for field, value in vector["headers"]]
    message = SignableRequest(vector["method"], "https", vector["path"], vector["query"], Headers(raw=raw))
    covered: Any = parse(vector["signature_input"].encode(), tltype="dictionary")
    signatures: Any = parse(vector["signature"].encode(), tltype="dictionary")
    base = signature_base(message, covered[vector["label"]])
    assert base.decode().split("\n") == vector["base"]
    key = read_public_key(VECTORS["keys"][vector["key"]].encode())
    assert key.verifies(base, signatures[vector["label"]][0])
    assert not key.verifies(base + b" ", signatures[vector["label"]][0])


def test_the_ecdsa_signature_of_the_rfc() -> None:
    vector = VECTORS["signatures"]["B.2.4"]
    key = read_public_key(VECTORS["keys"][vector["key"]].encode())
    assert key.algorithm is Algorithm.ECDSA_P256_SHA256
    assert key.verifies("\n".join(vector["base"]).encode(), base64.b64decode(vector["signature"]))


# -- What is accepted


@pytest.mark.parametrize("private", [ED25519, P256])
def test_a_signature_verifies_and_says_what_was_signed(private: Any) -> None:
    found = verify_request(signed(private, nonce="n", expires=NOW + 60), BODY, KEYS, NOW)
    assert found.key == key_of(private)
    assert found.key.verifies(found.base, found.signature)
    assert found.base.decode().splitlines()[:6] == [
        '"@method": POST',
        '"@authority": wallet.example:8080',
        '"@path": /v1/transfers',
        '"@query": ?',
        f'"content-digest": {DIGEST}',
        '"idempotency-key": k-1',
    ]
    assert found.content_sha256.hex() == "5f8f04f6a3a892aaabbddb6cf273894493773960d4a325b105fee46eef4304f1"


def test_the_target_uri_stands_for_its_parts_and_default_ports_vanish() -> None:
    covered = ["@method", "@target-uri", "content-digest", "idempotency-key"]
    unsigned = request({"Host": "Wallet.Example:443"}, scheme="https", query="a=1")
    found = verify_request(signed(covered=covered, unsigned=unsigned), BODY, KEYS, NOW)
    assert b'"@target-uri": https://wallet.example/v1/transfers?a=1\n' in found.base


def test_signatures_for_others_do_not_matter() -> None:
    ours = signed(label="ours")
    foreign = 'proxy=("@status");created=1, '
    both = with_headers(ours, signature_input=foreign + ours.headers["signature-input"])
    assert verify_request(both, BODY, KEYS, NOW).signature == verify_request(ours, BODY, KEYS, NOW).signature


def test_two_ecdsa_signatures_over_one_base_are_one() -> None:
    first, second = (verify_request(signed(P256), BODY, KEYS, NOW) for _ in range(2))
    assert first.signature != second.signature
    assert first.identity == second.identity


# -- What is refused


def test_each_covered_part_is_bound() -> None:
    for change in (
        {"method": "PUT"},
        {"path": "/v1/transfers:batch"},
        {"path": "/v1/%74ransfers"},
        {"query": "x"},
    ):
        assert "verifies over" in refusal(signed()._replace(**change))
    for field in ("host", "content_digest", "idempotency_key"):
        assert "verifies over" in refusal(with_headers(signed(), **{field: "other"}))


@pytest.mark.parametrize("left_out", COVERED)
def test_each_needed_part_must_be_covered(left_out: str) -> None:
    assert refusal(signed(covered=[name for name in COVERED if name != left_out])).startswith("covers @method")


def test_the_idempotency_key_is_needed_only_where_it_is_sent() -> None:
    bare = with_headers(request(), idempotency_key=None)
    verify_request(signed(covered=COVERED[:-1], unsigned=bare), BODY, KEYS, NOW)


@pytest.mark.parametrize(
    ("moment", "rule"),
    [
        ({"created": NOW - MAX_AGE_S - 1}, "was created within 300 s"),
        ({"created": NOW + MAX_AGE_S + 1}, "was created within 300 s"),
        ({"expires": NOW}, "has not expired"),
        ({"created": None}, "created and keyid"),
        ({"keyid": None}, "created and keyid"),
        ({"created": "now"}, "created an integer"),
        ({"created": True}, "created an integer"),
        ({"nonce": 7}, "nonce a string"),
        ({"tag": None}, "exactly one signature"),
        ({"tag": "other"}, "exactly one signature"),
        ({"alg": "rsa-pss-sha512"}, "alg of its key"),
        ({"keyid": "sha256:00"}, "registered for this credential"),
        ({"colour": "red"}, "no parameters but"),
        ({"nonce": "n" * 4_096}, "at most 4096 bytes"),
    ],
)
def test_parameters(moment: dict[str, Any], rule: str) -> None:
    assert rule in refusal(signed(**moment))


def test_the_edges_of_time_are_within() -> None:
    for created in (NOW - MAX_AGE_S, NOW + MAX_AGE_S):
        verify_request(signed(created=created, expires=NOW + 1), BODY, KEYS, NOW)


def test_nothing_secret_can_be_covered() -> None:
    unsigned = request({"Authorization": "Bearer gl_secret"})
    with pytest.raises(WalletError, match="covers fields that the request has"):
        signature_base(request(), ([("authorization", {})], {}))
    assert refusal(signed(covered=[*COVERED, "authorization"], unsigned=unsigned)).startswith("covers only")


def test_another_key_or_a_revoked_one_is_refused_alike() -> None:
    revoked = tuple(replace(key, revoked=True) for key in KEYS)
    assert refusal(signed(), revoked) == refusal(signed(), ()) == refusal(signed(), KEYS[1:])
    forged = signed(P256, keyid=KEYS[0].fingerprint)
    assert "verifies over" in refusal(forged)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"signature_input": None}, "is required"),
        ({"signature": None}, "is required"),
        ({"signature_input": "("}, "is a dictionary"),
        ({"signature_input": "é"}, "is a dictionary"),
        ({"signature": "sig=1"}, "byte sequence"),
        ({"signature": "other=:AA==:"}, "byte sequence"),
        ({"signature": "sig=:AA==:"}, "verifies over"),
        ({"signature": "sig=::"}, "verifies over"),
        ({"signature_input": 'sig="@method";tag="goldenlink"'}, "exactly one"),
        ({"signature_input": 'sig=();tag="goldenlink", b=();tag="goldenlink"'}, "exactly one"),
        ({"signature_input": 'sig=();tag="goldenlink", sig=();tag="goldenlink"'}, "once"),
        ({"signature_input": f'sig=();created={NOW};created={NOW};keyid="x";tag="goldenlink"'}, "once"),
        ({"signature_input": f'sig=("@method" "@method");created={NOW};keyid="x";tag="goldenlink"'}, "each component"),
        ({"signature_input": f'sig=("@method";req);created={NOW};keyid="x";tag="goldenlink"'}, "without parameters"),
        ({"signature_input": f'sig=(token 1 :AA==:);created={NOW};keyid="x";tag="goldenlink"'}, "covers only"),
    ],
)
def test_malformed_fields(change: dict[str, str | None], rule: str) -> None:
    assert rule in refusal(with_headers(signed(), **change))


def test_a_field_past_ascii_is_refused_and_not_an_error() -> None:
    forged = signed(unsigned=request())._replace(query="é")
    assert "ASCII" in refusal(forged)


def test_two_hosts_are_refused() -> None:
    doubled = signed()
    assert "once" in refusal(doubled._replace(headers=Headers(raw=[*doubled.headers.raw, (b"host", b"evil.example")])))


def test_a_claimed_signature_is_seen() -> None:
    assert is_signed(signed().headers)
    assert not is_signed(request().headers)
    assert not is_signed(signed(tag="other").headers)


def test_a_signature_of_the_wrong_length_is_none() -> None:
    assert not KEYS[1].verifies(b"m", b"")
    assert not KEYS[1].verifies(b"m", bytes(64))
    assert not KEYS[0].verifies(b"m", bytes(65))


def test_only_ed25519_and_p256_are_client_keys() -> None:
    for private in (rsa.generate_private_key(65_537, 2_048), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(ValueError, match="Ed25519"):
            key_of(private)
    for text in (b"", b"-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n", b"\xff"):
        with pytest.raises(ValueError, match="PEM"):
            read_public_key(text)
