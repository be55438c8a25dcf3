from typing import Any

import pytest
import rlp as library
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core import rlp

items = st.recursive(st.binary(max_size=70), lambda inner: st.lists(inner, max_size=20), max_leaves=60)


def depth(item: Any) -> int:
    return 0 if isinstance(item, bytes) else 1 + max(map(depth, item), default=0)


@settings(max_examples=200)
@given(items)
def test_rlp_encodes_as_the_library(item: Any) -> None:
    assert rlp.encode(item) == library.encode(item)


@settings(max_examples=300)
@given(items.map(library.encode) | st.binary(max_size=80))
def test_rlp_accepts_what_the_library_accepts_up_to_its_depth(encoded: bytes) -> None:
    try:
        expected = library.decode(encoded, strict=True)
    except library.exceptions.DecodingError:
        expected = None
    if expected is None or depth(expected) > rlp.MAX_DEPTH:
        with pytest.raises(rlp.RlpError):
            rlp.decode(encoded)
    else:
        assert rlp.decode(encoded) == expected


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\x81\x00",  # a byte below 0x80 with a prefix
        b"\xb8\x01\x80",  # a long form for a short string
        b"\xb8\x37" + bytes(55),
        b"\xb9\x00\x38" + bytes(56),  # a length with a leading zero
        b"\xf8\x37" + bytes(55),
        b"\xb8",
        b"\x82\x00",
        b"\xc2\x82\x00",  # an element that reaches past its list
        b"\x00\x00",
        b"\xbf" + b"\xff" * 8,
    ],
)
def test_other_forms_of_an_item_are_refused(encoded: bytes) -> None:
    with pytest.raises(rlp.RlpError):
        rlp.decode(encoded)


@given(st.integers(0, 2**300))
def test_integers_round_trip(value: int) -> None:
    assert rlp.decode_int(rlp.encode_int(value)) == value


@pytest.mark.parametrize("item", [b"\x00", b"\x00\x01", []])
def test_other_integers_are_refused(item: rlp.Item) -> None:
    with pytest.raises(rlp.RlpError):
        rlp.decode_int(item)
