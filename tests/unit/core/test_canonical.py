import json
import struct
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from services.core.canonical import canonical_json, format_time, from_hex, parse_canonical, parse_time, to_hex
from services.core.errors import Reason, WalletError

VECTORS = Path(__file__).parents[2] / "vectors" / "rfc8785"

# Every corner where sorted json.dumps and RFC 8785 part ways: keys beyond ASCII, floats, integer range, surrogates.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53) - 2, 2**53 + 2),
    st.floats(),
    st.decimals(0, 5_000, places=1).map(float),
    st.text(st.characters()),
    st.text(st.characters(codec="ascii")),
)
KEYS = st.one_of(st.text(st.characters(codec="ascii"), max_size=4), st.text(st.characters(), max_size=3))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=20
)


@given(VALUES)
def test_the_fast_path_writes_what_the_library_writes(value):
    try:
        expected = rfc8785.dumps(value)
    except ValueError:
        with pytest.raises(WalletError):
            canonical_json(value)
    else:
        assert canonical_json(value) == expected


@pytest.mark.parametrize("path", sorted((VECTORS / "input").iterdir()), ids=lambda path: path.stem)
def test_official_documents(path):
    assert canonical_json(json.loads(path.read_bytes())) == (VECTORS / "output" / path.name).read_bytes()


@pytest.mark.parametrize(("bits", "text"), json.loads((VECTORS / "numbers.json").read_bytes()).items())
def test_official_numbers(bits, text):
    assert canonical_json(struct.unpack(">d", bytes.fromhex(bits))[0]).decode() == text


@pytest.mark.parametrize("bits", ["7fffffffffffffff", "7ff0000000000000"])
def test_official_numbers_without_a_form(bits):
    with pytest.raises(WalletError, match="RFC 8785"):
        canonical_json(struct.unpack(">d", bytes.fromhex(bits))[0])


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_what_is_read_is_what_was_written(value):
    try:
        data = canonical_json(value)
        read = parse_canonical(data)
    except WalletError:
        return  # values without a form, and the whole numbers that parse_canonical leaves out
    assert canonical_json(read) == data


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b'{"a":1,"a":1}', "twice"),
        (b'{"a":[{"b":1,"b":2}]}', "twice"),
        (b'{"b":1,"a":2}', "RFC 8785 form"),
        (b'{"a": 1}', "RFC 8785 form"),
        (b'{"a":12.0}', "RFC 8785 form"),
        (b'{"a":"\\u0041"}', "RFC 8785 form"),
        (b'{"a":-0}', "RFC 8785 form"),
        (b'{"a":NaN}', "RFC 8785"),
        (b'{"a":1e400}', "RFC 8785"),
        (b'{"a":9007199254740992}', "RFC 8785"),
        (b'{"a":' + b"1" * 5_000 + b"}", "is JSON"),
        (b'{"a":"\\ud800"}', "RFC 8785"),
        (b'{"a":"\xff"}', "UTF-8"),
        ('{"a":1}'.encode("utf-16"), "UTF-8"),
        (b'\xef\xbb\xbf{"a":1}', "is JSON"),
        (b'{"a":1}x', "is JSON"),
        (b"[1]", "JSON object"),
        (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", "levels"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "levels"),
    ],
)
def test_other_texts_are_refused_by_name(data, rule):
    with pytest.raises(WalletError, match=rule) as caught:
        parse_canonical(data, "body")
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert caught.value.details["field"] == "body"


@given(st.binary(max_size=80))
def test_hex_both_ways(data):
    assert from_hex(to_hex(data)) == data


@pytest.mark.parametrize("text", ["", "0", "00", "0X00", "0xAB", "0x0", "0x0 0", "0xgg", "0x0\n", "0x٠٠", " 0x00"])
def test_other_hex_is_refused(text):
    with pytest.raises(WalletError, match="0x-hex"):
        from_hex(text)


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)))
def test_times_both_ways(naive):
    at = naive.replace(tzinfo=UTC)
    assert parse_time(format_time(at)) == at
    assert format_time(at.astimezone(timezone(timedelta(hours=9)))) == format_time(at)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-24T06:26:26Z",
        "2026-11-24T06:26:26.518Z",
        "2026-11-24T06:26:26.518081+00:00",
        "2026-11-24 06:26:26.518081Z",
        "2026-02-30T06:26:26.518081Z",
        "2026-11-24T25:26:26.518081Z",
        "2026-11-24T06:26:26.518081Z\n",
    ],
)
def test_other_times_are_refused(text):
    with pytest.raises(WalletError, match="UTC time"):
        parse_time(text)


def canonical_in_two_steps(data):
    """Whether `data` is what the library writes of what Python reads in it."""
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=lambda pairs: dict(pairs) if len(dict(pairs)) == len(pairs) else 1 / 0
        )
        return type(value) is dict and rfc8785.dumps(value) == data
    except (ValueError, ZeroDivisionError):
        return False


@given(
    st.dictionaries(KEYS, VALUES, max_size=4).filter(lambda value: len(repr(value)) < 500),
    st.sampled_from([{}, {"separators": (",", ":")}, {"separators": (",", ":"), "sort_keys": True}]),
    st.booleans(),
    st.integers(0, 400),
    st.sampled_from([b"", b" ", b"\n", b"0", b"-", b"e5", b".0", b'"', b"\\", b"\x7f", b'"a":1,', b"[", b"}", b"NaN"]),
)
def test_exactly_the_canonical_documents_are_read(value, style, ascii_only, place, noise):
    text = json.dumps(value, ensure_ascii=ascii_only, **style).encode("utf-8", "surrogatepass")
    data = text[:place] + noise + text[place:]
    try:
        read = parse_canonical(data)
    except WalletError:
        assert not canonical_in_two_steps(data) or abs(largest_integer(json.loads(data))) > 2**53 - 1
    else:
        assert canonical_in_two_steps(data)
        assert read == json.loads(data)


def largest_integer(value):
    """The number that is farthest from 0 among the integers, and the floats that are whole, in a document."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return max(map(largest_integer, value), key=abs, default=0)
    return value if type(value) in (int, float) else 0
