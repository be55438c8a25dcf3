"""Recursive Length Prefix, strict. Source: Ethereum yellow paper, appendix B."""

from collections.abc import Sequence
from typing import TypeAlias

from tools.verify.refusal import Refused

Item: TypeAlias = "bytes | list[Item]"

# Deepest legal nesting is a receipt's log topics (4); a bound keeps hostile input off Python's stack.
_MAX_DEPTH = 8


def decode(encoded: bytes, what: str) -> Item:
    """The one item that `encoded` is, in canonical encoding, with nothing after it."""
    item, end = _item(encoded, 0, len(encoded), what, 0)
    if end != len(encoded):
        raise Refused(f"{what}: {len(encoded) - end} bytes follow the RLP item")
    return item


def decode_list(encoded: bytes, what: str) -> list[Item]:
    item = decode(encoded, what)
    if isinstance(item, bytes):
        raise Refused(f"{what} is an RLP string, not a list")
    return item


def _item(data: bytes, start: int, limit: int, what: str, depth: int) -> tuple[Item, int]:
    if start >= limit:
        raise Refused(f"{what}: RLP ends early")
    first = data[start]
    if first < 0x80:
        return data[start : start + 1], start + 1
    is_list = first >= 0xC0
    short = first - (0xC0 if is_list else 0x80)
    if short <= 55:
        begin, size = start + 1, short
    else:
        begin = start + 1 + short - 55
        if begin > limit:
            raise Refused(f"{what}: RLP ends early")
        size = int.from_bytes(data[start + 1 : begin], "big")
        if size <= 55 or data[start + 1] == 0:
            raise Refused(f"{what}: RLP length not in its shortest form")
    end = begin + size
    if end > limit:
        raise Refused(f"{what}: RLP ends early")
    if not is_list:
        if size == 1 and data[begin] < 0x80:
            raise Refused(f"{what}: RLP byte not in its shortest form")
        return data[begin:end], end
    if depth == _MAX_DEPTH:
        raise Refused(f"{what}: RLP nested too deeply")
    items: list[Item] = []
    while begin < end:
        item, begin = _item(data, begin, end, what, depth + 1)
        items.append(item)
    return items, end


def encode(item: bytes | Sequence[Item]) -> bytes:
    if isinstance(item, bytes):
        if len(item) == 1 and item[0] < 0x80:
            return item
        return _head(len(item), 0x80) + item
    payload = b"".join(map(encode, item))
    return _head(len(payload), 0xC0) + payload


def _head(size: int, offset: int) -> bytes:
    if size <= 55:
        return bytes([offset + size])
    length = minimal(size)
    return bytes([offset + 55 + len(length)]) + length


def minimal(number: int) -> bytes:
    """`number` big-endian without leading zeros; zero is empty."""
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def unsigned(item: Item, what: str, bits: int = 256) -> int:
    """An integer in its minimal form, below 2**bits."""
    if not isinstance(item, bytes) or item[:1] == b"\0" or len(item) * 8 > bits:
        raise Refused(f"{what} is not a minimal integer of {bits} bits")
    return int.from_bytes(item, "big")


def string(item: Item, what: str, size: int | None = None) -> bytes:
    """A byte string; `size` in bytes where it is fixed."""
    if not isinstance(item, bytes) or (size is not None and len(item) != size):
        raise Refused(f"{what} is not {'a byte string' if size is None else f'{size} bytes'}")
    return item


def sequence(item: Item, what: str, size: int | None = None) -> list[Item]:
    """A list; `size` in items where it is fixed."""
    if isinstance(item, bytes) or (size is not None and len(item) != size):
        raise Refused(f"{what} is not a list{'' if size is None else f' of {size} items'}")
    return item
