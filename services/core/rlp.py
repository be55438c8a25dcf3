"""RLP, the serialisation of transactions, receipts, headers and trie nodes.

Strict: `decode` accepts exactly what `encode` writes. Written here because one transaction or trie node is encoded per
signature or inclusion, and a general library costs several times as much per call.
Source: Ethereum Yellow Paper, appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Item: TypeAlias = "bytes | Sequence[Item]"

# Nothing that we read nests deeper: transaction → access list → entry → storage keys → key; trie nodes nest less.
MAX_DEPTH = 8

_STRING_PREFIX = [bytes([0x80 + length]) for length in range(56)]
_LIST_PREFIX = [bytes([0xC0 + length]) for length in range(56)]


class RlpError(ValueError):
    """The bytes are not the one canonical RLP encoding of an item."""


def encode(item: Item) -> bytes:
    """Encode byte strings and (nested) sequences of them."""
    if isinstance(item, bytes):
        length = len(item)
        if length == 1 and item[0] < 0x80:
            return item
        return (_STRING_PREFIX[length] if length < 56 else _long_prefix(0xB7, length)) + item
    return encode_list(b"".join([encode(element) for element in item]))


def encode_list(payload: bytes) -> bytes:
    """Encode the list whose encoded elements, one behind the other, are `payload`."""
    length = len(payload)
    return (_LIST_PREFIX[length] if length < 56 else _long_prefix(0xF7, length)) + payload


def list_payload(data: bytes) -> bytes:
    """What `encode_list` made `data` of."""
    first = data[0]
    return data[1 if first < 0xF8 else first - 0xF6 :]


def encode_int(value: int) -> bytes:
    """The byte string of a non-negative integer: big-endian, no leading zeros, empty for 0."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def decode(data: bytes) -> Item:
    """Decode exactly one item; lists come back as Python lists.

    Raises:
        RlpError: not canonical, truncated, followed by further bytes, or nested deeper than `MAX_DEPTH`.
    """
    item, end = _decode_at(data, 0, len(data), MAX_DEPTH)
    if end != len(data):
        raise RlpError("bytes follow the item")
    return item


def decode_int(item: Item) -> int:
    """The integer of a byte string written by `encode_int`.

    Raises:
        RlpError: a list, or leading zeros.
    """
    if not isinstance(item, bytes) or item[:1] == b"\x00":
        raise RlpError("an integer has leading zeros or is a list")
    return int.from_bytes(item, "big")


def _long_prefix(offset: int, length: int) -> bytes:
    size = encode_int(length)
    return bytes([offset + len(size)]) + size


def _decode_at(data: bytes, start: int, limit: int, depth: int) -> tuple[Item, int]:
    """The item at `start`, which may not reach past `limit`, and the position after it."""
    if start >= limit:
        raise RlpError("an item is truncated")
    first = data[start]
    if first < 0x80:
        return data[start : start + 1], start + 1
    is_list = first >= 0xC0
    length = first - (0xC0 if is_list else 0x80)
    begin = start + 1
    if length > 55:
        begin += length - 55
        size = data[start + 1 : begin]
        length = int.from_bytes(size, "big")
        if begin > limit or size[0] == 0 or length < 56:
            raise RlpError("a length is not minimal")
    end = begin + length
    if end > limit:
        raise RlpError("an item is truncated")
    if not is_list:
        if length == 1 and data[begin] < 0x80:
            raise RlpError("a single byte below 0x80 carries a prefix")
        return data[begin:end], end
    if depth == 0:
        raise RlpError("lists are nested too deep")
    elements: list[Item] = []
    while begin < end:
        first = data[begin]
        if first < 0x80:
            elements.append(data[begin : begin + 1])
            begin += 1
        elif first < 0xB8:  # nearly every element is a short string: no call for each
            start, begin = begin + 1, begin + first - 0x7F
            if begin > end:
                raise RlpError("an item is truncated")
            if first == 0x81 and data[start] < 0x80:
                raise RlpError("a single byte below 0x80 carries a prefix")
            elements.append(data[start:begin])
        else:
            element, begin = _decode_at(data, begin, end, depth - 1)
            elements.append(element)
    return elements, end
