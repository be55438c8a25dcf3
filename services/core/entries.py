"""Entries of the evidence log: the leaf, the commitment to its body, and what a body of each kind must hold.

Source: BUNDLE, "Encoding", "Leaf" and "Bodies". `Row` tables are the page in data; the order of entries is `grammar`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, NamedTuple

from services.core.canonical import format_time, from_hex, parse_canonical, parse_time
from services.core.errors import Reason, WalletError, refuse

MAX_LEAF_SIZE = 2_048
MAX_BODY_SIZE = 1 << 20  # of the canonical JSON
MAX_DATA_SIZE = 128 << 10  # of a transaction's call data
SALT_SIZE = 32

_LINK_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_WORD = re.compile(r"0x[0-9a-f]{64}")
_ADDRESS = re.compile(r"0x[0-9a-f]{40}")
_BLOOM = re.compile(r"0x[0-9a-f]{512}")
_NODE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CHAIN_ID = re.compile(r"eip155:[1-9][0-9]{0,31}")
_ACCOUNT = re.compile(r"eip155:[1-9][0-9]{0,31}:0x[0-9a-f]{40}")
_WEI = re.compile(r"0|[1-9][0-9]{0,77}")
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}")
_LEAF_MEMBERS = {"v", "kind", "link_id", "step", "prev", "at", "trace_id", "span_id", "body"}


class Kind(StrEnum):
    INTENT = "intent"
    SIGNATURE = "signature"
    REQUEST = "request"
    RESPONSE = "response"
    INCLUSION = "inclusion"
    REVOCATION = "revocation"
    # Administrative acts: links of their own, never in a bundle.
    POLICY = "policy"
    KEY = "key"
    EXPORT = "export"
    ARCHIVE = "archive"


ADMINISTRATIVE = frozenset({Kind.POLICY, Kind.KEY, Kind.EXPORT, Kind.ARCHIVE})


@dataclass(frozen=True, slots=True)
class Leaf:
    """What the tree commits to for one entry."""

    kind: Kind
    link_id: str
    step: int  # 0, 1, 2 … within the link
    prev: bytes  # leaf hash of the step before; empty at step 0
    at: datetime  # the log's clock
    trace_id: str  # bare W3C hex
    span_id: str
    body: bytes  # the commitment: SHA-256(salt ‖ canonical body)

    def encode(self) -> bytes:
        """Raises WalletError like `encode_leaf`."""
        return encode_leaf(
            self.kind, self.link_id, self.step, self.prev, self.at, self.trace_id, self.span_id, self.body
        )

    @classmethod
    def decode(cls, data: bytes) -> Leaf:
        """The leaf of canonical bytes.

        Raises:
            WalletError: INVALID_REQUEST naming the member and the rule.
        """
        if len(data) > MAX_LEAF_SIZE:
            refuse("leaf", f"has at most {MAX_LEAF_SIZE} bytes")
        members = parse_canonical(data, "leaf")
        if members.keys() != _LEAF_MEMBERS:
            refuse("leaf", "has exactly nine members")
        if not _is_count(members["v"]) or members["v"] != 1:
            refuse("v", "is 1")
        if not _is_count(members["step"]):
            refuse("step", "is a whole number from 0")
        for name in _LEAF_MEMBERS - {"v", "step"}:
            if type(members[name]) is not str:
                refuse(name, "is text")
        if members["kind"] not in _KINDS:
            refuse("kind", "is a known kind")
        leaf = cls(
            kind=Kind(members["kind"]),
            link_id=members["link_id"],
            step=members["step"],
            prev=from_hex(members["prev"], "prev") if members["prev"] else b"",
            at=parse_time(members["at"], "at"),
            trace_id=members["trace_id"],
            span_id=members["span_id"],
            body=from_hex(members["body"], "body"),
        )
        if leaf.encode() != data:
            refuse("leaf", "is encoded in one way only")
        return leaf


def encode_leaf(
    kind: Kind, link_id: str, step: int, prev: bytes, at: datetime, trace_id: str, span_id: str, body: bytes
) -> bytes:
    """The canonical JSON. Every member is of bounded size, about 450 bytes together, far below MAX_LEAF_SIZE.

    Raises:
        WalletError: INVALID_REQUEST naming the member that breaks its rule.
    """
    check_link_id(link_id)
    if not _TRACE_ID.fullmatch(trace_id):
        refuse("trace_id", "is 32 digits of lower-case hex, not all zero")
    if not _SPAN_ID.fullmatch(span_id):
        refuse("span_id", "is 16 digits of lower-case hex, not all zero")
    if step < 0 or len(prev) != (32 if step else 0):
        refuse("prev", "is empty at step 0 and a 32-byte leaf hash after it")
    if len(body) != 32:
        refuse("body", "is a 32-byte commitment")
    # RFC 8785 by hand: the members in order, and no text in them that would need an escape.
    return (
        f'{{"at":"{format_time(at)}","body":"0x{body.hex()}","kind":"{kind}","link_id":"{link_id}",'
        f'"prev":"{"0x" + prev.hex() if prev else ""}","span_id":"{span_id}","step":{step},'
        f'"trace_id":"{trace_id}","v":1}}'
    ).encode()


def leaf_hash(leaf: bytes) -> bytes:
    """SHA-256(0x00 ‖ leaf). Source: RFC 6962 §2.1."""
    return sha256(b"\x00" + leaf).digest()


def body_commitment(salt: bytes, body: bytes) -> bytes:
    """SHA-256(salt ‖ canonical body), 32 bytes.

    Raises:
        WalletError: INVALID_REQUEST for a salt of another size; PAYLOAD_TOO_LARGE past MAX_BODY_SIZE.
    """
    if len(salt) != SALT_SIZE:
        refuse("salt", f"has {SALT_SIZE} bytes")
    if len(body) > MAX_BODY_SIZE:
        refuse("body", f"has at most {MAX_BODY_SIZE} bytes", Reason.PAYLOAD_TOO_LARGE)
    return sha256(salt + body).digest()


def check_link_id(link_id: str, field: str = "link_id") -> None:
    """Raises WalletError INVALID_REQUEST unless `link_id` is `[A-Za-z0-9._:-]{1,64}`."""
    if not _LINK_ID.fullmatch(link_id):
        refuse(field, "is 1 to 64 characters of A-Z a-z 0-9 . _ : -")


def check_body(kind: Kind, body: Mapping[str, Any]) -> None:
    """Every listed field is there, with its type and encoding; further fields are welcome.

    Administrative kinds list none. How fields agree with each other and with earlier entries is for `grammar`.

    Raises:
        WalletError: INVALID_REQUEST with `field` (dotted where nested) and `rule`.
    """
    _check_rows(_BODIES[kind], body, "")
    if kind is Kind.INTENT and not _is_link_id_or_null(body.get("supersedes")):
        refuse("supersedes", "is a link id or null")
    if kind is Kind.SIGNATURE:
        _check_signature(body)
    elif kind is Kind.RESPONSE:
        _check_response(body)


def _check_rows(rows: tuple[Row, ...], body: Mapping[str, Any], prefix: str) -> None:
    for field, rule, test, within in rows:
        try:
            value = body[field]
            passed = test(value)
        except KeyError:
            refuse(prefix + field, "is present (null where it does not apply)")
        except TypeError:
            passed = False
        if not passed:
            refuse(prefix + field, rule)
        if within and value is not None:
            _check_rows(within, value, f"{prefix}{field}.")


def _check_signature(body: Mapping[str, Any]) -> None:
    success = body["status"] == "success"
    # A failure may come before there is a token or a duration.
    for field in ("duration_ms", "token") if success else ():
        if body[field] is None:
            refuse(field, "is not null where the status is success")
    for field in ("r", "s", "y_parity", "raw_tx", "tx_hash"):
        if (body[field] is None) is success:
            refuse(field, "is null unless the status is success, and then it is not")
    if (body["error"] is None) is not success:
        refuse("error", "is text unless the status is success, and then it is null")


def _check_response(body: Mapping[str, Any]) -> None:
    if body["tx_hash"] is not None and body["http_status"] != 200:
        refuse("tx_hash", "is null unless the node answered with HTTP 200")
    if body["http_status"] is None and (body["headers"] or body["body"] != "0x"):
        refuse("body", "is 0x, and headers {}, where there was no HTTP answer")


# Tests of one value: true or false, or TypeError, which is false. Types are compared exactly: a JSON true is not the
# integer 1. They run for every field of every entry, so patterns are tests without a function around them.


def _is_text(value: Any) -> bool:
    return type(value) is str and value != ""


def _is_text_or_null(value: Any) -> bool:
    return value is None or type(value) is str


def _is_texts(value: Any) -> bool:
    return type(value) is list and all(type(item) is str for item in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_attempt(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_duration_or_null(value: Any) -> bool:
    return value is None or ((type(value) is float or type(value) is int) and 0 <= value < math.inf)


def _is_hex(value: Any) -> bool:
    try:
        from_hex(value)
    except (WalletError, AttributeError):
        return False
    return True


def _is_some_hex(value: Any) -> bool:
    return value != "0x" and _is_hex(value)


def _is_some_hex_or_null(value: Any) -> bool:
    return value is None or _is_some_hex(value)


def _is_data(value: Any) -> bool:
    return value == "0x" or (_is_hex(value) and len(value) <= 2 + 2 * MAX_DATA_SIZE)


def _is_wei(value: Any) -> bool:
    return _WEI.fullmatch(value) is not None and (len(value) < 78 or int(value) < 2**256)


def _is_time(value: Any) -> bool:
    try:
        parse_time(value)
    except WalletError:
        return False
    return True


def _is_object(value: Any) -> bool:
    return type(value) is dict


def _is_object_or_null(value: Any) -> bool:
    return value is None or type(value) is dict


def _is_parity_or_null(value: Any) -> bool:
    return value is None or (type(value) is int and value in (0, 1))


def _is_http_status_or_null(value: Any) -> bool:
    return value is None or (type(value) is int and 100 <= value <= 599)


def _is_headers(value: Any) -> bool:
    return type(value) is dict and all(
        type(text) is str and name and name == name.lower() for name, text in value.items()
    )


def _is_nodes(value: Any) -> bool:
    return type(value) is list and bool(value) and all(map(_NODE.fullmatch, value)) and len(set(value)) == len(value)


def _is_proof(value: Any) -> bool:
    return type(value) is list and bool(value) and all(map(_is_some_hex, value))


def _is_link_id_or_null(value: Any) -> bool:
    return value is None or (type(value) is str and _LINK_ID.fullmatch(value) is not None)


def _null_or(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: value is None or pattern.fullmatch(value) is not None


def _one_of(*texts: str) -> Callable[[Any], bool]:
    return frozenset(texts).__contains__


class Row(NamedTuple):
    """One listed field of a body."""

    field: str
    rule: str  # completes the sentence "the field …"
    test: Callable[[Any], object]  # what it answers is true, or not
    within: tuple[Row, ...] = ()  # the listed members of an object


_HASH = "is 32 bytes of 0x-hex"
_TIMESTAMP = "is a UTC time YYYY-MM-DDTHH:MM:SS.ffffffZ"
_COUNT = "is a whole number from 0"
_NAME = "is a configured node's name: 1 to 64 characters of A-Z a-z 0-9 . _ -"
_TEXT_OR_NULL = "is text or null"

_BODIES: dict[Kind, tuple[Row, ...]] = {
    Kind.INTENT: (
        Row("account", "is chain_id:address (CAIP-10)", _ACCOUNT.fullmatch),
        Row("chain_id", "is eip155:N", _CHAIN_ID.fullmatch),
        Row("from", "is 20 bytes of 0x-hex", _ADDRESS.fullmatch),
        Row("to", "is 20 bytes of 0x-hex, or null", _null_or(_ADDRESS)),
        Row("value_wei", "is a decimal string of 0 … 2**256 - 1 without leading zeros", _is_wei),
        Row("data", f"is 0x-hex of at most {MAX_DATA_SIZE} bytes", _is_data),
        Row("unsigned_tx", "is 0x-hex", _is_some_hex),
        Row("tx_sign_hash", _HASH, _WORD.fullmatch),
        Row("signing_digest", _HASH, _WORD.fullmatch),
        Row("key_id", "is text", _is_text),
        Row("key_version", _COUNT, _is_count),
        Row(
            "policy",
            "is an object",
            _is_object,
            (
                Row("version", _COUNT, _is_count),
                Row("sha256", _HASH, _WORD.fullmatch),
                Row("decision", "is allow or deny", _one_of("allow", "deny")),
                Row("rules", "is a list of text", _is_texts),
            ),
        ),
        Row("actor", _TEXT_OR_NULL, _is_text_or_null),
        Row("source_ip", _TEXT_OR_NULL, _is_text_or_null),
        Row("client_fingerprint", _TEXT_OR_NULL, _is_text_or_null),
        Row("requested_at", _TIMESTAMP, _is_time),
    ),
    Kind.SIGNATURE: (
        Row("status", "is success, failed or timeout", _one_of("success", "failed", "timeout")),
        Row("algorithm", "is ecdsa_secp256k1", _one_of("ecdsa_secp256k1")),
        Row("r", _HASH + ", or null", _null_or(_WORD)),
        Row("s", _HASH + ", or null", _null_or(_WORD)),
        Row("y_parity", "is 0, 1 or null", _is_parity_or_null),
        Row("raw_tx", "is 0x-hex, or null", _is_some_hex_or_null),
        Row("tx_hash", _HASH + ", or null", _null_or(_WORD)),
        Row("duration_ms", "is a number from 0, or null", _is_duration_or_null),
        Row(
            "token",
            "is an object or null",
            _is_object_or_null,
            (
                Row("label", "is text", _is_text),
                Row("serial", "is text", _is_text),
                Row("library", "is text", _is_text),
            ),
        ),
        Row("error", _TEXT_OR_NULL, _is_text_or_null),
    ),
    Kind.REQUEST: (
        Row("node", _NAME, _NODE.fullmatch),
        Row("body", "is 0x-hex", _is_some_hex),
        Row(
            "batch",
            "is an object or null",
            _is_object_or_null,
            (
                Row("sha256", _HASH, _WORD.fullmatch),
                Row("index", _COUNT, _is_count),
                Row("size", "is a whole number from 1", _is_attempt),
            ),
        ),
        Row("sent_at", _TIMESTAMP, _is_time),
        Row("attempt", "is a whole number from 1", _is_attempt),
    ),
    Kind.RESPONSE: (
        Row("node", _NAME, _NODE.fullmatch),
        Row("attempt", "is a whole number from 1", _is_attempt),
        Row("client_version", _TEXT_OR_NULL, _is_text_or_null),
        Row("http_status", "is 100 … 599, or null", _is_http_status_or_null),
        Row("headers", "is an object of text by lower-case name", _is_headers),
        Row("body", "is 0x-hex", _is_hex),
        Row("tx_hash", _HASH + ", or null", _null_or(_WORD)),
        Row("received_at", _TIMESTAMP, _is_time),
    ),
    Kind.INCLUSION: (
        Row("status", "is included, safe or finalized", _one_of("included", "safe", "finalized")),
        Row("block_number", _COUNT, _is_count),
        Row("block_hash", _HASH, _WORD.fullmatch),
        Row("header_rlp", "is 0x-hex", _is_some_hex),
        Row("transaction_index", _COUNT, _is_count),
        Row("transaction_proof", "is a list of 0x-hex nodes, root first", _is_proof),
        Row("receipt_rlp", "is 0x-hex", _is_some_hex),
        Row("receipt_proof", "is a list of 0x-hex nodes, root first", _is_proof),
        Row("logs_bloom", "is 256 bytes of 0x-hex", _BLOOM.fullmatch),
        Row("sha3_uncles", _HASH, _WORD.fullmatch),
        Row("agreeing_nodes", "is a list of distinct node names, at least one", _is_nodes),
    ),
    Kind.REVOCATION: (
        Row("block_hash", _HASH, _WORD.fullmatch),
        Row("reason", "is text", _is_text),
        Row("depth", _COUNT, _is_count),
    ),
    Kind.POLICY: (),
    Kind.KEY: (),
    Kind.EXPORT: (),
    Kind.ARCHIVE: (),
}

_KINDS = frozenset(kind.value for kind in Kind)
