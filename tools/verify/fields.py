"""Readers of single JSON values: each returns the value in Python's terms or refuses, naming the field."""

import re
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from datetime import UTC, datetime, timedelta

from tools.verify.refusal import Refused, quoted

_LINK_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_CHAIN_ID = re.compile(r"eip155:([1-9][0-9]{0,77})")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,77}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def exactly(value: object, names: frozenset[str], what: str) -> dict[str, object]:
    """An object with exactly the members `names`."""
    members = at_least(value, names, what)
    if len(members) != len(names):
        extra = next(name for name in members if name not in names)
        raise Refused(f"{what} has an unknown member {quoted(extra)}")
    return members


def at_least(value: object, names: frozenset[str], what: str) -> dict[str, object]:
    """An object with the members `names`, and maybe more."""
    if type(value) is not dict:
        raise Refused(f"{what} is {quoted(value)}, not an object")
    if not names <= value.keys():
        raise Refused(f"{what} lacks the member {min(names - value.keys())!r}")
    return value


def array(value: object, what: str) -> list[object]:
    if type(value) is not list:
        raise Refused(f"{what} is {quoted(value)}, not an array")
    return value


def text(value: object, what: str) -> str:
    if type(value) is not str:
        raise Refused(f"{what} is {quoted(value)}, not text")
    return value


def text_or_null(value: object, what: str) -> str | None:
    return None if value is None else text(value, what)


def node_name(value: object, what: str) -> str:
    """A configured name. A URL may carry a key, so anything that looks like one is refused."""
    name = text(value, what)
    if not name or "://" in name:
        raise Refused(f"{what} is {quoted(name)}, not a configured name")
    return name


def integer(value: object, what: str) -> int:
    """A JSON integer, 0 or more (a boolean is none)."""
    if type(value) is not int or value < 0:
        raise Refused(f"{what} is {quoted(value)}, not an integer of 0 or more")
    return value


def amount(value: object, what: str) -> int:
    """A decimal string without leading zeros, below 2**256."""
    if type(value) is not str or not _DECIMAL.fullmatch(value) or (number := int(value)) >= 2**256:
        raise Refused(f"{what} is {quoted(value)}, not a decimal amount below 2**256")
    return number


def octets(value: object, what: str, size: int | None = None) -> bytes:
    """Lower-case 0x-hex; `size` in bytes where it is fixed."""
    if type(value) is str and value.startswith("0x"):
        try:
            decoded = bytes.fromhex(value[2:])
        except ValueError:
            decoded = None
        # The way back refuses what fromhex tolerates: upper case and white space.
        if decoded is not None and decoded.hex() == value[2:]:
            if size is not None and len(decoded) != size:
                raise Refused(f"{what} has {len(decoded)} bytes, not {size}")
            return decoded
    raise Refused(f"{what} is {quoted(value)}, not lower-case 0x-hex")


def base64(value: object, what: str, size: int | None = None) -> bytes:
    """Padded base64 (RFC 4648, section 4) in its only form; `size` in bytes where it is fixed."""
    if type(value) is str:
        try:
            decoded = a2b_base64(value, strict_mode=True)
        except (Base64Error, ValueError):
            decoded = None
        if decoded is not None and b64encode(decoded).decode() == value:
            if size is not None and len(decoded) != size:
                raise Refused(f"{what} has {len(decoded)} bytes, not {size}")
            return decoded
    raise Refused(f"{what} is {quoted(value)}, not padded base64")


def w3c_id(value: object, digits: int, what: str) -> str:
    """A trace_id (32 digits) or span_id (16): lower-case hex, not all zero. Source: W3C Trace Context."""
    if type(value) is not str or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value) or value.strip("0") == "":
        raise Refused(f"{what} is {quoted(value)}, not {digits} hex digits, not all zero")
    return value


def link_id(value: object, what: str) -> str:
    if type(value) is not str or not _LINK_ID.fullmatch(value):
        raise Refused(f"{what} is {quoted(value)}, not a link id")
    return value


def chain_number(value: object, what: str) -> int:
    """N of the CAIP-2 chain id `eip155:N`, 1 ≤ N < 2**256."""
    match = _CHAIN_ID.fullmatch(value) if type(value) is str else None
    if match is None or (number := int(match[1])) >= 2**256:
        raise Refused(f"{what} is {quoted(value)}, not eip155:N")
    return number


def time_us(value: object, what: str) -> int:
    """A time `YYYY-MM-DDTHH:MM:SS.ffffffZ` in microseconds since 1970."""
    if type(value) is str and _TIME.fullmatch(value):
        try:
            return (datetime.fromisoformat(value) - _EPOCH) // _MICROSECOND
        except ValueError:
            pass
    raise Refused(f"{what} is {quoted(value)}, not a UTC time with microseconds")
