"""JSON-RPC 2.0 as bytes: what is sent, exactly, and each answer of a batch cut from the HTTP body, exactly.

Source: the JSON-RPC 2.0 specification; evidence keeps these bytes, so nothing here re-serialises an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_WRITER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_READER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


class Call(NamedTuple):
    """One method with its positional parameters."""

    method: str
    params: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One JSON-RPC response object and the bytes that it was read from."""

    exact: bytes
    members: dict[str, Any]


class NotJsonRpc(ValueError):
    """The bytes are not what a JSON-RPC server answers; the text says which part, and quotes nothing."""


def encode_call(request_id: int, call: Call) -> bytes:
    """The bytes of one request object."""
    return _WRITER.encode(
        {"jsonrpc": "2.0", "id": request_id, "method": call.method, "params": list(call.params)}
    ).encode("ascii")


def encode_batch(calls: Sequence[bytes]) -> bytes:
    """The HTTP body of a batch whose elements are `calls`, byte for byte."""
    return b"[" + b",".join(calls) + b"]"


def read_answers(body: bytes) -> list[Answer]:
    """The response objects of an HTTP body: one, or the elements of a batch, in the node's order.

    Raises:
        NotJsonRpc: not UTF-8, not JSON, or not an object or a list of objects.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise NotJsonRpc("the body is not UTF-8") from None
    start = _after_space(text, 0)
    if not text.startswith("[", start):
        answer, end = _object_at(text, start)
        _expect_end(text, end)
        return [answer]
    answers: list[Answer] = []
    position = _after_space(text, start + 1)
    if text.startswith("]", position):
        _expect_end(text, position + 1)
        return answers
    while True:
        answer, position = _object_at(text, position)
        answers.append(answer)
        position = _after_space(text, position)
        if text.startswith(",", position):
            position = _after_space(text, position + 1)
        elif text.startswith("]", position):
            _expect_end(text, position + 1)
            return answers
        else:
            raise NotJsonRpc("the body is no JSON list")


def answers_by_id(body: bytes) -> dict[int, Answer]:
    """The response objects by their whole-number ids; objects with other ids, or one id twice, answer nothing.

    Raises:
        NotJsonRpc: see `read_answers`.
    """
    found: dict[int, Answer] = {}
    repeated: set[int] = set()
    for answer in read_answers(body):
        request_id = answer.members.get("id")
        if type(request_id) is not int:
            continue
        if request_id in found:
            repeated.add(request_id)
        found[request_id] = answer
    return {request_id: answer for request_id, answer in found.items() if request_id not in repeated}


def _object_at(text: str, start: int) -> tuple[Answer, int]:
    try:
        value, end = _READER.raw_decode(text, start)
    except (ValueError, RecursionError):
        raise NotJsonRpc("the body is not JSON") from None
    if not isinstance(value, dict):
        raise NotJsonRpc("an answer is not a JSON object")
    return Answer(text[start:end].encode(), value), end


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _expect_end(text: str, position: int) -> None:
    if _after_space(text, position) != len(text):
        raise NotJsonRpc("bytes follow the JSON value")
