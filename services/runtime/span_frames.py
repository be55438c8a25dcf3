"""Frames of a spool: OTLP requests one behind the other, each with its length and checksum. Pure."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

# Magic, spans, bytes of the payload, CRC-32 of both numbers and the payload.
_HEADER = struct.Struct("<4sIII")
_NUMBERS = struct.Struct("<II")
_MAGIC = b"GLS1"
HEADER_BYTES = _HEADER.size
# Of a payload. Receivers of OTLP take 4 MiB by default.
MAX_PAYLOAD_BYTES = 1024 * 1024


class Frames(NamedTuple):
    """Whole frames. Payloads are serialised ExportTraceServiceRequests: joined, they are one that holds all."""

    payload: bytes
    spans: int
    used: int  # bytes, headers included


def encode_frame(payload: bytes, spans: int) -> bytes:
    return _HEADER.pack(_MAGIC, spans, len(payload), _checksum(payload, spans)) + payload


def first_frames(data: bytes, max_payload: int = MAX_PAYLOAD_BYTES) -> Frames:
    """The whole frames that `data` begins with: one, and as many more as stay within `max_payload`."""
    payloads: list[bytes] = []
    spans = used = size = 0
    while len(data) - used >= HEADER_BYTES:
        magic, count, length, checksum = _HEADER.unpack_from(data, used)
        payload = data[used + HEADER_BYTES : used + HEADER_BYTES + length]
        if magic != _MAGIC or len(payload) < length or checksum != _checksum(payload, count):
            break
        if payloads and size + length > max_payload:
            break
        payloads.append(payload)
        spans, size, used = spans + count, size + length, used + HEADER_BYTES + length
    return Frames(b"".join(payloads), spans, used)


def next_beginning(data: bytes) -> int:
    """Where, behind a damaged frame at the start, the next one may begin; the end when there is none."""
    found = data.find(_MAGIC, 1)
    # The last bytes may be the first ones of a magic.
    return found if found > 0 else max(1, len(data) - len(_MAGIC) + 1)


def _checksum(payload: bytes, spans: int) -> int:
    return zlib.crc32(payload, zlib.crc32(_NUMBERS.pack(spans, len(payload))))
