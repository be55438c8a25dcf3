"""Canonical JSON (RFC 8785) and the text encodings of bytes and times that go with it."""

from __future__ import annotations

import json
import re
from binascii import unhexlify
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NoReturn

import rfc8785

from services.core.errors import WalletError, refuse

MAX_DEPTH = 32  # arrays and objects within each other; our bodies need four
MAX_INTEGER = 2**53 - 1  # RFC 8785 §3.2.2.3 by way of RFC 7493 §2.2: past it a double is not exact

_ENCODER = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False
)
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")


def canonical_json(value: Any) -> bytes:
    """The RFC 8785 form of `value` (dict, list, tuple, str, int, float, bool, None).

    Raises:
        WalletError: INVALID_REQUEST for NaN, infinities, integers past ±(2**53 − 1), lone surrogates, keys that are not
            text, other types, and nesting deeper than MAX_DEPTH.
    """
    try:
        if _is_plain(value, MAX_DEPTH):
            return _ENCODER.encode(value).encode()
        written: bytes = rfc8785.dumps(value)
        return written
    except (ValueError, RecursionError) as error:
        refuse("json", f"has an RFC 8785 form: {error}")


def parse_canonical(data: bytes, field: str = "json") -> dict[str, Any]:
    """The object that `data` is the one canonical form of.

    Narrower than RFC 8785 in one corner: a whole number past ±(2**53 − 1) is refused even where its double is exact.

    Raises:
        WalletError: INVALID_REQUEST, with `field` and the rule that was broken.
    """
    value = _parse_plain(data)
    return _parse_any(data, field) if value is None else value


def _parse_plain(data: bytes) -> dict[str, Any] | None:
    """The object of a canonical document without escapes, texts beyond ASCII and unusual numbers; None for others.

    Every entry of the log passes here, and what is written again to be compared costs twice what it costs to be read.
    In a text without a backslash each quotation mark begins or ends a string, so what lies outside of strings is plain:
    no blank there, the members of each object in order, and numbers in their one form, and the document is canonical.
    """
    if not data.isascii() or b"\\" in data:
        return None
    text = data.decode()
    outside = "".join(text.split('"')[::2])
    if outside.count("[") + outside.count("{") > MAX_DEPTH or _BLANK.search(outside):
        return None
    try:
        value, end = _PLAIN_DECODER.raw_decode(text)
    except ValueError:
        return None
    return value if end == len(text) and type(value) is dict else None


def _plain_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    names = list(members)
    if len(names) != len(pairs) or names != sorted(names):
        raise ValueError
    return members


def _plain_integer(text: str) -> int:
    if len(text) > _SAFE_DIGITS or text == "-0":
        raise ValueError
    return int(text)


def _plain_float(text: str) -> float:
    number = float(text)
    # Python writes a whole number with .0, and begins to write exponents elsewhere than ECMAScript.
    if "e" in text or text.endswith(".0") or repr(number) != text:
        raise ValueError
    return number


def _not_plain(_: str) -> NoReturn:
    raise ValueError


_BLANK = re.compile(r"[ \t\n\r]")
_SAFE_DIGITS = 15  # all integers of so many are within ±MAX_INTEGER
_PLAIN_DECODER = json.JSONDecoder(
    object_pairs_hook=_plain_object, parse_int=_plain_integer, parse_float=_plain_float, parse_constant=_not_plain
)


def _parse_any(data: bytes, field: str) -> dict[str, Any]:
    try:
        value = json.loads(data.decode())
    except UnicodeDecodeError:
        refuse(field, "is UTF-8")
    except (ValueError, RecursionError):
        refuse(field, f"is JSON of at most {MAX_DEPTH} levels")
    if type(value) is not dict:
        refuse(field, "is a JSON object")
    try:
        written = canonical_json(value)
    except WalletError as error:
        refuse(field, str(error.details["rule"]))
    if written != data:
        # A repeated member is lost by the parser, so the bytes differ: only the message needs a second look.
        json.loads(data.decode(), object_pairs_hook=lambda pairs: _distinct(pairs, field))
        refuse(field, "is in RFC 8785 form")
    return value


def to_hex(data: bytes) -> str:
    """Lower-case 0x-hex; `0x` for no bytes."""
    return "0x" + data.hex()


def from_hex(text: str, field: str = "hex") -> bytes:
    """The bytes of lower-case 0x-hex.

    Raises:
        WalletError: INVALID_REQUEST if `text` is anything else, upper case included.
    """
    try:
        if text[:2] != "0x" or text.lower() != text:
            raise ValueError
        return unhexlify(text[2:])
    except ValueError:
        refuse(field, "is lower-case 0x-hex of whole bytes")


@lru_cache(maxsize=16)  # the entries of one commit share their time
def format_time(at: datetime) -> str:
    """`YYYY-MM-DDTHH:MM:SS.ffffffZ` of an aware time."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")[:26] + "Z"


@lru_cache(maxsize=64)
def parse_time(text: str, field: str = "time") -> datetime:
    """The aware UTC time of `YYYY-MM-DDTHH:MM:SS.ffffffZ`.

    Raises:
        WalletError: INVALID_REQUEST for any other form, and for dates that do not exist.
    """
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text)
    except ValueError:
        refuse(field, "is a UTC time YYYY-MM-DDTHH:MM:SS.ffffffZ")


def _is_plain(value: Any, depth: int) -> bool:
    """Whether json.dumps, sorted and compact, writes `value` as RFC 8785 does.

    It does unless: keys are not ASCII (Python sorts by code point, the RFC by UTF-16 unit) or not text; an integer is
    out of range; a float is whole, or so large or small that Python and ECMAScript differ about the exponent.
    Lone surrogates fail later, in UTF-8. The whole value is walked, so that its depth is known to be bounded.
    """
    if value is None:
        return True
    kind = type(value)
    if kind is str or kind is bool:
        return True
    if kind is int:
        return bool(-MAX_INTEGER <= value <= MAX_INTEGER)
    if kind is float:
        return 1e-4 <= abs(value) < 1e15 and not value.is_integer()
    if not isinstance(value, dict | list | tuple):
        return False
    if depth == 0:
        raise ValueError(f"more than {MAX_DEPTH} levels")
    plain = True
    if isinstance(value, dict):
        try:
            plain = "".join(value).isascii()
        except TypeError:
            plain = False
        value = value.values()
    for member in value:
        if type(member) is not str and not _is_plain(member, depth - 1):
            plain = False
    return plain


def _distinct(pairs: list[tuple[str, Any]], field: str) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        refuse(field, "has no member twice")
