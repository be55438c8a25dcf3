"""The entries of a bundle: first as they stand in the file, then with leaf and body read."""

from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from tools.verify import fields, merkle
from tools.verify.body import Body, parse_body
from tools.verify.refusal import Refused, quoted
from tools.verify.strict_json import parse_canonical

B = TypeVar("B", bound=Body)

_MEMBERS = frozenset({"index", "leaf", "body", "salt", "proof"})
_LEAF = frozenset({"v", "kind", "link_id", "step", "prev", "at", "trace_id", "span_id", "body"})
_KINDS = ("intent", "signature", "request", "response", "inclusion", "revocation")
_MAX_LEAF_BYTES = 2_048
_MAX_BODY_BYTES = 1_048_576


@dataclass(frozen=True, slots=True)
class SealedEntry:
    """`leaf` and `body` are the exact bytes; nothing in them has been looked at."""

    index: int
    leaf: bytes
    body: bytes
    salt: bytes
    proof: list[bytes]
    leaf_hash: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """`prev` is empty at step 0."""

    sealed: SealedEntry
    link_id: str
    trace_id: str
    step: int
    prev: bytes
    at_us: int
    body: Body


def parse_sealed_entry(value: object, what: str) -> SealedEntry:
    entry = fields.exactly(value, _MEMBERS, what)
    leaf = fields.base64(entry["leaf"], f"{what}.leaf")
    body = fields.base64(entry["body"], f"{what}.body")
    if len(leaf) > _MAX_LEAF_BYTES:
        raise Refused(f"{what}.leaf has {len(leaf)} bytes, more than {_MAX_LEAF_BYTES}")
    if len(body) > _MAX_BODY_BYTES:
        raise Refused(f"{what}.body has {len(body)} bytes, more than {_MAX_BODY_BYTES}")
    return SealedEntry(
        index=fields.integer(entry["index"], f"{what}.index"),
        leaf=leaf,
        body=body,
        salt=fields.octets(entry["salt"], f"{what}.salt", 32),
        proof=[fields.octets(h, f"{what}.proof", 32) for h in fields.array(entry["proof"], f"{what}.proof")],
        leaf_hash=merkle.leaf_hash(leaf),
    )


def open_entry(sealed: SealedEntry) -> Entry:
    """The entry with its leaf and body read and the leaf's commitment to the body checked."""
    leaf = fields.exactly(parse_canonical(sealed.leaf, "the leaf"), _LEAF, "the leaf")
    if fields.integer(leaf["v"], "v") != 1:
        raise Refused(f"v is {leaf['v']}")
    kind = fields.text(leaf["kind"], "kind")
    if kind not in _KINDS:
        raise Refused(f"kind is {quoted(kind)}")
    if sha256(sealed.salt + sealed.body).digest() != fields.octets(leaf["body"], "the leaf's body", 32):
        raise Refused("the leaf does not commit to this salt and body")
    fields.w3c_id(leaf["span_id"], 16, "span_id")
    step = fields.integer(leaf["step"], "step")
    return Entry(
        sealed=sealed,
        link_id=fields.link_id(leaf["link_id"], "link_id"),
        trace_id=fields.w3c_id(leaf["trace_id"], 32, "trace_id"),
        step=step,
        prev=b"" if step == 0 and leaf["prev"] == "" else fields.octets(leaf["prev"], "prev", 32),
        at_us=fields.time_us(leaf["at"], "at"),
        body=parse_body(kind, parse_canonical(sealed.body, "the body")),
    )


def of_kind(entries: list[Entry], kind: type[B]) -> list[tuple[int, Entry, B]]:
    """(position, entry, body) of the entries whose body is a `kind`."""
    return [(i, entry, entry.body) for i, entry in enumerate(entries) if isinstance(entry.body, kind)]
