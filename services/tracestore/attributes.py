"""Attributes as search sees them: a text for each value, and the tokens by which the index finds spans. Pure: no I/O.

A token is 32 bits of an attribute, of the span's name or of its duration. Two that differ may have the same token:
whoever searches looks at the span's bytes again.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable
from decimal import Decimal

from protos.wallet.v1.otlp_parts_pb2 import OtlpAttribute, OtlpSpanDetails, OtlpValue

# A span of which the index says nothing: one with more attributes than the index takes, or an earlier version's.
UNDESCRIBED = 0
# OpenTelemetry's own limit of attributes a span.
MAX_TOKENS = 128
ERROR_KEY = b"error"
STATUS_ERROR = 2
_MICROSECOND_BITS, _HOUR_BITS = 10, 43
_MAX_KEPT, _MAX_KEPT_BYTES = 16_384, 256


def value_text(value: OtlpValue) -> bytes:
    """The value as a text: what Jaeger compares, so that "200" finds 200.

    Source: OpenTelemetry specification, "AnyValue representation for non-OTLP": numbers in decimal, bytes in base64,
    arrays and maps in JSON.
    """
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return b"true" if value.bool_value else b"false"
        case "int_value":
            return b"%d" % value.int_value
        case "double_value":
            return _double_text(value.double_value).encode()
        case "bytes_value":
            return base64.b64encode(value.bytes_value)
        case None:
            return b""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def attribute_pairs(attributes: Iterable[OtlpAttribute]) -> list[tuple[bytes, bytes]]:
    return [(attribute.key, value_text(attribute.value)) for attribute in attributes]


def attribute_token(key: bytes, text: bytes) -> int:
    return _token(b"a" + key + b"\0" + text)


def name_token(name: bytes) -> int:
    return _token(b"n" + name)


def duration_tokens(least_ns: int, most_ns: int) -> list[int]:
    """Of all durations between the two: a token is a power of two."""
    return sorted({duration_token(bits) for bits in range(least_ns.bit_length(), most_ns.bit_length() + 1)})


def duration_token(bits: int) -> int:
    """Of a duration by the bits that its nanoseconds take. All below a microsecond have one, and all above an hour."""
    return min(max(bits, _MICROSECOND_BITS), _HOUR_BITS)


class Tokens:
    """Tokens of spans, as PostgreSQL reads them. Most attributes repeat: what was made of one is kept."""

    def __init__(self) -> None:
        self._kept: dict[bytes, str] = {}

    def of_attributes(self, attributes: Iterable[bytes]) -> list[str]:
        """Of serialised attributes.

        Raises:
            DecodeError: one is no OTLP message.
        """
        kept = self._kept
        return [kept.get(attribute) or self._read(attribute) for attribute in attributes]

    def of_details(self, details: OtlpSpanDetails) -> list[str]:
        """Of the attributes of a span and of its events."""
        attributes = [*details.attributes, *(one for event in details.events for one in event.attributes)]
        if len(attributes) >= MAX_TOKENS:
            return [str(UNDESCRIBED)]
        return [str(attribute_token(one.key, value_text(one.value))) for one in attributes]

    def _read(self, attribute: bytes) -> str:
        read = OtlpAttribute.FromString(attribute)
        token = str(attribute_token(read.key, value_text(read.value)))
        if len(attribute) <= _MAX_KEPT_BYTES:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            self._kept[attribute] = token
        return token


def _token(content: bytes) -> int:
    """PostgreSQL's integer, never UNDESCRIBED."""
    checksum = zlib.crc32(content)
    return (checksum - 2**32 if checksum >= 2**31 else checksum) or 1


def _double_text(number: float) -> str:
    """As Go's encoding/json writes it, in which Jaeger compares: no exponent from 1e-6 to 1e21, shortest digits."""
    if not math.isfinite(number):
        return repr(number)
    if number != 0 and not 1e-6 <= abs(number) < 1e21:
        mantissa, _, exponent = repr(number).partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent):+d}"
    return format(Decimal(repr(number)), "f").removesuffix(".0")


def _plain(value: OtlpValue) -> object:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value.decode("utf-8", "replace")
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "bytes_value":
            return base64.b64encode(value.bytes_value).decode()
        case "array_value":
            return [_plain(one) for one in value.array_value.values]
        case "kvlist_value":
            return {one.key.decode("utf-8", "replace"): _plain(one.value) for one in value.kvlist_value.values}
    return None
