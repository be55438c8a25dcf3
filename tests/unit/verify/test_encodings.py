"""The verifier's own readers of RLP, tries and JSON, against encodings with two meanings and against bombs."""

import math

import pytest
import rfc8785
import rlp as reference_rlp
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.verify import forge
from tools.verify import Refused, rlp, strict_json, trie

ITEMS = st.recursive(st.binary(max_size=70), lambda inner: st.lists(inner, max_size=5), max_leaves=12)


def depth(item: object) -> int:
    return 1 + max(map(depth, item), default=0) if isinstance(item, list) else 0


@settings(deadline=None)
@given(ITEMS)
def test_rlp_reads_what_another_library_writes(item: object) -> None:
    encoded = reference_rlp.encode(item)
    if depth(item) <= 8:
        assert rlp.decode(encoded, "item") == item
        assert rlp.encode(rlp.decode(encoded, "item")) == encoded


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_rlp_accepts_only_the_one_encoding(data: bytes) -> None:
    try:
        item = rlp.decode(data, "item")
    except Refused:
        return
    assert reference_rlp.encode(item) == data


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "8100",
        "817f",
        "b800",
        "b837" + "00" * 55,
        "b90038" + "00" * 56,
        "f800",
        "c1",
        "82ff",
        "bf",
        "ff",
        "c0c0",
        "8000",
    ],
)
def test_rlp_refuses(encoded: str) -> None:
    with pytest.raises(Refused):
        rlp.decode(bytes.fromhex(encoded), "item")


def test_rlp_refuses_a_nesting_bomb() -> None:
    nested = b"\xc0"
    for _ in range(5_000):
        nested = reference_rlp.codec.length_prefix(len(nested), 0xC0) + nested
    with pytest.raises(Refused, match="nested too deeply"):
        rlp.decode(nested, "item")


KEYS = st.binary(min_size=2, max_size=2)  # of one length, so that none is another's prefix


@settings(deadline=None)
@given(st.dictionaries(KEYS, st.binary(min_size=1, max_size=40), min_size=1, max_size=40), st.data())
def test_trie_proofs_with_short_and_long_nodes(pairs: dict[bytes, bytes], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(pairs)))
    root, proof = forge.trie_proof(pairs, key)
    assert trie.proven_value(root, key, proof, "proof") == pairs[key]
    other = data.draw(KEYS)
    if other != key:
        try:
            value = trie.proven_value(root, other, proof, "proof")
        except Refused:
            pass
        else:
            # Short siblings stand inside the same node: this proof is theirs as well.
            assert value == pairs[other]
    for wrong in ([*proof, proof[-1]], proof[:-1], [*proof, b"\x80"]):
        with pytest.raises(Refused):
            trie.proven_value(root, key, wrong, "proof")


@pytest.mark.parametrize("path", [b"", b"\x40", b"\x01", b"\x21", b"\x30", []])
def test_trie_refuses_a_bad_path_prefix(path: object) -> None:
    node = reference_rlp.encode([path, b"value" * 10])
    with pytest.raises(Refused):
        trie.proven_value(forge.keccak(node), b"\x00", [node], "proof")


def test_trie_refuses_an_empty_extension() -> None:
    leaf = reference_rlp.encode([b"\x20\x12", b"value" * 10])
    extension = reference_rlp.encode([b"\x00", forge.keccak(leaf)])
    with pytest.raises(Refused):
        trie.proven_value(forge.keccak(extension), b"\x12", [extension, leaf], "proof")


SAFE = st.integers(-(2**53) + 1, 2**53 - 1)
SCALARS = st.none() | st.booleans() | SAFE | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@settings(deadline=None)
@given(JSON)
def test_canonical_json_is_what_the_library_writes(value: object) -> None:
    try:
        raw = rfc8785.dumps(value)
    except rfc8785.CanonicalizationError:
        return
    try:
        parsed = strict_json.parse_canonical(raw, "value")
    except Refused:
        # A whole number past 2**53 comes back as an integer that RFC 8785 cannot keep.
        assert "e" in raw.decode() or any(len(run) > 15 for run in raw.decode().split(","))
        return
    assert rfc8785.dumps(parsed) == raw


@settings(deadline=None)
@given(st.text(alphabet='{}[]:,"ab01.-eE+ \\nu/é\u2028\x7f', max_size=30))
def test_canonical_json_accepts_only_the_librarys_form(text: str) -> None:
    try:
        parsed = strict_json.parse_canonical(text.encode(), "value")
    except Refused:
        return
    assert rfc8785.dumps(parsed) == text.encode()


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":1}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b"[-Infinity]",
        b"[9007199254740992]",
        b"[-9007199254740992]",
        b"[" + b"9" * 100_000 + b"]",
        b"[" * 1_000_000,
        b'{"a":' * 1_000_000,
        b"\xff",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b"",
        b"{} {}",
        b'"\x01"',
    ],
)
def test_json_refuses(raw: bytes) -> None:
    for parse in (strict_json.parse_json, strict_json.parse_canonical):
        with pytest.raises(Refused):
            parse(raw, "value")


@pytest.mark.parametrize("raw", [b'"\\ud800"', b'{"\\udfff":1}', b'{"a":"\\u0041"}', b"[1e400]", b"[-0.0]", b"[1.50]"])
def test_canonical_json_refuses(raw: bytes) -> None:
    with pytest.raises(Refused):
        strict_json.parse_canonical(raw, "value")


def test_keys_sort_by_utf_16_unit() -> None:
    # RFC 8785, 3.2.3: U+1F600 (a surrogate pair, D83D…) comes before U+FB03.
    assert strict_json.parse_canonical('{"😀":1,"ﬃ":2}'.encode(), "value") == {"😀": 1, "ﬃ": 2}
    with pytest.raises(Refused):
        strict_json.parse_canonical('{"ﬃ":2,"😀":1}'.encode(), "value")


def test_a_huge_exponent_is_no_number() -> None:
    assert strict_json.parse_json(b"1e999", "value") == math.inf
    with pytest.raises(Refused):
        strict_json.parse_canonical(b"1e999", "value")
