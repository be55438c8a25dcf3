"""What the signer and its children say to each other: frames, each after its length in four bytes, big-endian.

A child begins with a greeting, which is JSON: {"token": {label, serial, library}, "transport_key": hex}, or
{"refused": failure}. Then the signer sends requests,

    chunk (2) ‖ number of leaves (2) ‖ leaves ‖ for each digest: place of its leaf (2) ‖ digest (32)
    leaf: key_ref, wrapped_aes_key, wrapped_private_key, each after its length (2)

and for each, in order, the child answers in frames of at most `chunk` results:

    0 (1) ‖ r ‖ s (64) ‖ milliseconds (8, a double)     or     1 (1) ‖ length (2) ‖ failure, which is JSON

A failure is {"reason", "message", "origin"}.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

from services.core.digests import Digest
from services.core.errors import Reason, WalletError
from services.signer.backend import SealedLeaf

MAX_FRAME_BYTES = 16 << 20
_LENGTH = struct.Struct(">I")
_HEAD = struct.Struct(">HH")
_SHORT = struct.Struct(">H")
_DIGEST = struct.Struct(">H32s")
_SIGNED = struct.Struct(">B64sd")
_IS_SIGNED = 0
_FAILED = b"\x01"


class DigestToSign(NamedTuple):
    leaf: SealedLeaf
    digest: Digest


class TokenSignature(NamedTuple):
    """What the token answered."""

    raw_signature: bytes  # r ‖ s, unverified, s may be high
    duration_ms: float


def frame(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def split_frame(received: bytearray) -> bytes | None:
    """The first frame of what was received, taken out of it; None where it is not complete yet.

    Raises:
        ValueError: it is too large.
    """
    if len(received) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack_from(received)
    if size > MAX_FRAME_BYTES:
        raise ValueError("a frame is too large")
    end = _LENGTH.size + size
    if len(received) < end:
        return None
    body = bytes(received[_LENGTH.size : end])
    del received[:end]
    return body


def receive_frame(stream: BinaryIO) -> bytes:
    """The next frame, blocking. Raises EOFError when the other side is gone."""
    (size,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    return _read(stream, size)


def encode_greeting(greeting: dict[str, Any]) -> bytes:
    return json.dumps(greeting).encode()


def decode_greeting(body: bytes) -> dict[str, Any]:
    """Raises ValueError for what is not JSON."""
    greeting: dict[str, Any] = json.loads(body)
    return greeting


def encode_request(digests: Sequence[DigestToSign], chunk: int) -> bytes:
    places: dict[str, int] = {}
    leaves: list[bytes] = []
    asked: list[bytes] = []
    for leaf, digest in digests:
        place = places.get(leaf.key_ref)
        if place is None:
            place = places[leaf.key_ref] = len(places)
            leaves += map(_text, (leaf.key_ref.encode(), leaf.wrapped_aes_key, leaf.wrapped_private_key))
        asked.append(_DIGEST.pack(place, digest))
    return b"".join((_HEAD.pack(chunk, len(places)), *leaves, *asked))


def decode_request(body: bytes) -> tuple[list[DigestToSign], int]:
    """The digests, and how many results a frame takes at most."""
    chunk, count = _HEAD.unpack_from(body)
    at = _HEAD.size
    leaves: list[SealedLeaf] = []
    for _ in range(count):
        parts: list[bytes] = []
        for _ in range(3):
            (size,) = _SHORT.unpack_from(body, at)
            at += _SHORT.size + size
            parts.append(body[at - size : at])
        leaves.append(SealedLeaf(parts[0].decode(), parts[1], parts[2]))
    asked = _DIGEST.iter_unpack(memoryview(body)[at:])
    return [DigestToSign(leaves[place], Digest(digest)) for place, digest in asked], chunk


def encode_results(results: Sequence[TokenSignature | WalletError]) -> bytes:
    return b"".join(
        [
            _FAILED + _text(json.dumps(failure(result)).encode())
            if isinstance(result, WalletError)
            else _SIGNED.pack(_IS_SIGNED, *result)
            for result in results
        ]
    )


def decode_results(body: bytes) -> list[TokenSignature | WalletError]:
    """Raises ValueError for what is none."""
    results: list[TokenSignature | WalletError] = []
    at = 0
    try:
        while at < len(body):
            if body[at] == _IS_SIGNED:
                _, raw_signature, duration_ms = _SIGNED.unpack_from(body, at)
                at += _SIGNED.size
                results.append(TokenSignature(raw_signature, duration_ms))
            else:
                (size,) = _SHORT.unpack_from(body, at + 1)
                begin = at + 1 + _SHORT.size
                at = begin + size
                results.append(error_of(json.loads(body[begin:at])))
    except (struct.error, KeyError, TypeError) as error:
        raise ValueError("a frame without results") from error
    return results


def failure(error: WalletError) -> dict[str, str]:
    return {
        "reason": error.reason.name,
        "message": error.message,
        "origin": str(error.details.get("origin", "token")),
    }


def error_of(failure: dict[str, str]) -> WalletError:
    return WalletError(Reason[failure["reason"]], failure["message"], origin=failure["origin"])


def _text(data: bytes) -> bytes:
    return _SHORT.pack(len(data)) + data


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
