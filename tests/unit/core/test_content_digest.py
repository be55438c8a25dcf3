from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.core.content_digest import check_content_digest
from services.core.errors import Reason, WalletError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "rfc9530" / "digests.json").read_text(encoding="utf-8"))
BODY = b'{"hello": "world"}'
SHA_256 = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"


def refusal(values: list[str], content: bytes = BODY) -> WalletError:
    with pytest.raises(WalletError) as refused:
        check_content_digest(values, content)
    assert refused.value.details["field"] == "Content-Digest"
    return refused.value


@pytest.mark.parametrize("vector", VECTORS)
def test_the_digests_of_the_rfcs_are_those_of_their_contents(vector: dict[str, str]) -> None:
    content = vector["content"].encode()
    check_content_digest([vector["field"]], content)
    assert refusal([vector["field"]], content + b" ").reason is Reason.CONTENT_DIGEST_MISMATCH


def test_every_known_digest_is_compared() -> None:
    sha_512 = VECTORS[4]["field"]
    check_content_digest([SHA_256, sha_512], BODY)
    check_content_digest([f"{sha_512}, {SHA_256}"], BODY)
    wrong = sha_512.replace("WZDP", "WZDQ")
    assert refusal([SHA_256, wrong]).reason is Reason.CONTENT_DIGEST_MISMATCH


def test_an_unknown_algorithm_counts_for_nothing() -> None:
    check_content_digest([f"md5=:1B2M2Y8AsgTpgAmY7PhCfg==:, {SHA_256}"], BODY)
    alone = refusal(["md5=:1B2M2Y8AsgTpgAmY7PhCfg==:"])
    assert alone.reason is Reason.INVALID_REQUEST
    assert "sha-256 or sha-512" in str(alone.details["rule"])


@pytest.mark.parametrize(
    "value",
    ["", "sha-256", "sha-256=47DE", "sha-256=:not base64:", "sha-256=(:AA==:)", SHA_256 + ",", SHA_256 + " x", "é"],
)
def test_what_is_no_digest_field_is_refused(value: str) -> None:
    assert refusal([value]).reason is Reason.INVALID_REQUEST


def test_without_the_field_nothing_is_checked() -> None:
    check_content_digest([], BODY)
