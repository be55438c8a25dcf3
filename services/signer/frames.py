"""What the signer and its children say to each other: JSON objects, each after its length in four bytes.

Signer → child: {"leaves": {key_ref: [wrapped_aes_key, wrapped_private_key]}, "digests": [[key_ref, digest], …],
"chunk": n}. Child → signer: first {"token": {label, serial, library}, "transport_key"} or {"refused": failure}, then
for each request, in order, frames {"results": [[signature, duration_ms] or failure, …]} of at most n results.
A failure is {"reason", "message", "origin"}. Bytes are hex.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

from services.core.errors import Reason, WalletError

MAX_FRAME_BYTES = 16 << 20
_LENGTH = struct.Struct(">I")


def encode_frame(message: dict[str, Any]) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next frame. Raises EOFError when the other side is gone or speaks nonsense."""
    (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if size > MAX_FRAME_BYTES:
        raise EOFError("a frame is too large")
    message: dict[str, Any] = json.loads(await reader.readexactly(size))
    return message


def receive_frame(connection: socket.socket) -> dict[str, Any]:
    """The next frame, blocking. Raises EOFError when the other side is gone."""
    (size,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
    message: dict[str, Any] = json.loads(_receive(connection, size))
    return message


def failure(error: WalletError) -> dict[str, str]:
    return {
        "reason": error.reason.name,
        "message": error.message,
        "origin": str(error.details.get("origin", "token")),
    }


def error_of(failure: dict[str, str]) -> WalletError:
    return WalletError(Reason[failure["reason"]], failure["message"], origin=failure["origin"])


def _receive(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        part = connection.recv(min(size - len(received), 1 << 20))
        if not part:
            raise EOFError
        received += part
    return bytes(received)
