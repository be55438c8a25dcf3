"""JSON that has one meaning: no duplicate members, no NaN, integers within ±(2**53-1), RFC 8785 where asked."""

import json
from collections.abc import Callable
from typing import Never

import rfc8785

from tools.verify.refusal import Refused

_MAX_INTEGER = 2**53 - 1  # RFC 8785, 3.2.2.3: what a double holds exactly


class _FloatSeen(Exception):
    """The fast path met a number that json.dumps may write otherwise than RFC 8785."""


def _integer(text: str) -> int:
    # The length first: int() of a long text is slow and, past 4,300 digits, refused by Python itself.
    if len(text) > 17 or abs(number := int(text)) > _MAX_INTEGER:
        raise ValueError("an integer outside ±(2**53-1)")
    return number


def _no_float(text: str) -> Never:
    raise _FloatSeen


def _constant(text: str) -> Never:
    raise ValueError(f"{text} is not JSON")


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a duplicate member")
    return members


def _decoder(parse_float: Callable[[str], float]) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_members, parse_int=_integer, parse_float=parse_float, parse_constant=_constant
    )


_DECODER = _decoder(float)
_FLOATLESS_DECODER = _decoder(_no_float)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def parse_json(raw: bytes, what: str) -> object:
    """The JSON text `raw` (UTF-8).

    Raises:
        Refused: not JSON, or JSON that two readers could understand differently.
    """
    try:
        parsed: object = _DECODER.decode(raw.decode())
    except (ValueError, RecursionError) as error:
        raise Refused(f"{what} is not strict JSON: {_reason(error)}") from None
    return parsed


def parse_canonical(raw: bytes, what: str) -> object:
    """The JSON text `raw`, which must be its own RFC 8785 form.

    Where the text is ASCII and holds no fraction or exponent, sorted compact json.dumps is that form: ASCII keys
    sort alike by code point and by UTF-16 unit, both escape the same characters in the same way, and integers
    within ±(2**53-1) are written alike. Everything else goes through the rfc8785 library.
    """
    try:
        text = raw.decode()
        if raw.isascii():
            try:
                parsed: object = _FLOATLESS_DECODER.decode(text)
                canonical = _ENCODER.encode(parsed).encode()
            except _FloatSeen:
                parsed = _DECODER.decode(text)
                canonical = rfc8785.dumps(parsed)  # type: ignore[arg-type]
        else:
            parsed = _DECODER.decode(text)
            canonical = rfc8785.dumps(parsed)  # type: ignore[arg-type]
    except (ValueError, RecursionError) as error:
        raise Refused(f"{what} is not canonical JSON: {_reason(error)}") from None
    if canonical != raw:
        raise Refused(f"{what} is not in its RFC 8785 form")
    return parsed


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return ascii(str(error))[1:-1][:120]
