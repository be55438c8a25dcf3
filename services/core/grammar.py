"""The grammar of a link: which entry may follow, in which state, with which times.

`GRAMMAR` is the whole of it: for each kind, the states it may be entered in and the step that checks the body against
the link's head and answers the new head. Bodies have passed `entries.check_body` before.

Checked here, so that a link that is stored is a link that verifies: order, states and times (BUNDLE, "Bodies", "Order
of times", "States by entries"), and every equality that costs a hash at most: intent ↔ unsigned transaction, raw_tx ↔
tx_hash, request ↔ signature, response ↔ request, inclusion ↔ answered request, block hash ↔ header ↔ its copied fields.
Left to the verifier, and before it to the service that makes the body: that the signature recovers to `from`, that
raw_tx is the unsigned transaction with that signature, and the two trie proofs with the receipt.
Stricter than BUNDLE in: attempts rise per node; the bounds below; no fee bump before the last intent is signed, nor of
a mined transaction; no transaction signed twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple, NoReturn

from services.core import rlp
from services.core.canonical import MAX_INTEGER, format_time, from_hex, parse_time, to_hex
from services.core.digests import keccak256
from services.core.entries import ADMINISTRATIVE, Kind
from services.core.errors import Reason, refuse
from services.core.transactions import decode_unsigned
from services.core.transactions import tx_hash as tx_hash_of

CLOCK_TOLERANCE = timedelta(seconds=5)
BLOCK_TOLERANCE = timedelta(seconds=15)  # a block's timestamp is its proposer's clock

# A head is made anew with every entry and kept in memory, so it stays small however long the link grows.
MAX_SIGNED = 64  # transactions of one link: the first and its fee bumps
MAX_NODES = 64
MAX_OPEN_REQUESTS = 64  # past it the oldest is given up; its late response is refused
MAX_REQUEST_ID = 64  # characters of a JSON-RPC id

_STATUS_RANK = {"included": 1, "safe": 2, "finalized": 3}


class State(StrEnum):
    NEW = "NEW"  # before the first entry; never stored
    ADMINISTRATIVE = "ADMINISTRATIVE"
    BUILT = "BUILT"
    SIGNED = "SIGNED"
    SUBMITTED = "SUBMITTED"
    INCLUDED = "INCLUDED"
    SAFE = "SAFE"
    FINALIZED = "FINALIZED"
    FAILED = "FAILED"


CLOSED = frozenset({State.FINALIZED, State.FAILED})


class Terms(NamedTuple):
    """What all intents of a link share, as in the body; `data_sha256` stands for up to 128 KiB of data."""

    chain_id: str
    sender: str
    to: str | None
    value_wei: str
    data_sha256: str
    nonce: int


class SignedTransaction(NamedTuple):
    tx_hash: str
    intent_at: str
    signed_at: str
    answered: bool  # a node has answered a request of it by HTTP


class OpenRequest(NamedTuple):
    node: str
    attempt: int
    tx_hash: str
    request_id: int | str
    sent_at: str


class LinkHead(NamedTuple):
    """Where a link stands, and what the rules need to know of its past.

    Hashes and the times of the past are texts, as in the bodies. A closed link keeps no facts but its state, for
    nothing follows.
    """

    state: State
    step: int
    at: datetime
    trace_id: str
    leaf_hash: bytes = b""  # of the last entry; set by `with_leaf_hash` once the leaf is made
    terms: Terms | None = None
    intent_at: str = ""  # of the intent that awaits its signature; empty if none does
    signed: tuple[SignedTransaction, ...] = ()
    attempts: tuple[tuple[str, int], ...] = ()  # the highest attempt per node
    open_requests: tuple[OpenRequest, ...] = ()
    status: str | None = None  # of the current inclusion
    block_hash: str | None = None

    def with_leaf_hash(self, leaf_hash: bytes) -> LinkHead:
        # By position, here and below: `_replace` takes twice as long, and every signature passes here four times.
        return LinkHead._make((*self[:_LEAF_HASH], leaf_hash, *self[_LEAF_HASH + 1 :]))

    def with_intents(
        self, state: State, at: datetime, terms: Terms | None, intent_at: str, signed: tuple[SignedTransaction, ...]
    ) -> LinkHead:
        """The next step's head, after an intent or a signature."""
        return LinkHead(
            state,
            self.step + 1,
            at,
            self.trace_id,
            self.leaf_hash,
            terms,
            intent_at,
            signed,
            self.attempts,
            self.open_requests,
            self.status,
            self.block_hash,
        )


_LEAF_HASH = LinkHead._fields.index("leaf_hash")


def advance(
    head: LinkHead | None,
    kind: Kind,
    body: dict[str, Any],
    at: datetime,
    *,
    trace_id: str,
    min_agreeing_nodes: int = 1,
) -> LinkHead:
    """The head after an entry of `kind` with a well-formed `body`, entered `at` (UTC) by the log's clock.

    `head` None begins a link. The new head's leaf_hash is the old one until `with_leaf_hash`; `min_agreeing_nodes` is
    the trust file's, for safe and finalized.

    Raises:
        WalletError: LINK_CLOSED; OUT_OF_ORDER; CLOCK_SKEW; INVALID_REQUEST where fields contradict each other or an
            earlier entry. All name field and rule.
    """
    if head is None:
        head = LinkHead(State.NEW, -1, at, trace_id)
    elif head.state in CLOSED:
        refuse("kind", f"is nothing, for the link is {head.state}", Reason.LINK_CLOSED)
    elif at < head.at:
        refuse("at", "never decreases along a link", Reason.CLOCK_SKEW)
    states, step = GRAMMAR[kind]
    if head.state not in states:
        refuse("kind", f"is not {kind} in state {head.state}", Reason.OUT_OF_ORDER)
    if trace_id != head.trace_id and kind not in ADMINISTRATIVE:
        refuse("trace_id", "is the same for all entries of a link")
    if kind is Kind.INCLUSION and body["status"] != "included" and len(body["agreeing_nodes"]) < min_agreeing_nodes:
        refuse("agreeing_nodes", f"names at least {min_agreeing_nodes} nodes for {body['status']}")
    return step(head, body, at)


def _intent(head: LinkHead, body: dict[str, Any], at: datetime) -> LinkHead:
    denied = body["policy"]["decision"] == "deny"
    if denied and head.state is not State.NEW:
        refuse("policy.decision", "is deny only in a link of its own", Reason.OUT_OF_ORDER)
    if head.intent_at:
        refuse("kind", "is not intent before the last intent has its signature", Reason.OUT_OF_ORDER)
    if len(head.signed) >= MAX_SIGNED:
        refuse("kind", f"is not intent after {MAX_SIGNED} signed transactions", Reason.OUT_OF_ORDER)
    _not_ahead("requested_at", body["requested_at"], at)
    terms = _terms(body)
    if head.terms is not None and terms != head.terms:
        changed = next(name for name, old, new in zip(Terms._fields, head.terms, terms, strict=True) if old != new)
        refuse(_TERM_FIELDS.get(changed, changed), "is the same in all intents of a link")
    if denied:
        return _closed(head, State.FAILED, at)
    state = State.BUILT if head.state is State.NEW else head.state
    return head.with_intents(state, at, terms, format_time(at), head.signed)


def _signature(head: LinkHead, body: dict[str, Any], at: datetime) -> LinkHead:
    if not head.intent_at:
        refuse("kind", "is one success per intent", Reason.OUT_OF_ORDER)
    if body["status"] != "success":
        return head._replace(step=head.step + 1, at=at)
    tx_hash = body["tx_hash"]
    if to_hex(tx_hash_of(from_hex(body["raw_tx"]))) != tx_hash:
        refuse("tx_hash", "is keccak-256 of raw_tx")
    if any(tx.tx_hash == tx_hash for tx in head.signed):
        refuse("tx_hash", "is new in the link", Reason.OUT_OF_ORDER)
    signed = (*head.signed, SignedTransaction(tx_hash, head.intent_at, format_time(at), False))
    state = State.SIGNED if head.state is State.BUILT else head.state
    return head.with_intents(state, at, head.terms, "", signed)


def _request(head: LinkHead, body: dict[str, Any], at: datetime) -> LinkHead:
    node, attempt = body["node"], body["attempt"]
    attempts = dict(head.attempts)
    if attempt <= attempts.get(node, 0):
        refuse("attempt", "is higher than every earlier one to the node", Reason.OUT_OF_ORDER)
    attempts[node] = attempt
    if len(attempts) > MAX_NODES:
        refuse("node", f"is one of at most {MAX_NODES} in a link")
    batch = body["batch"]
    if batch is not None and batch["index"] >= batch["size"]:
        refuse("batch.index", "is below batch.size")
    request_id, tx_hash = _sent_transaction(body["body"])
    transaction = next((tx for tx in head.signed if tx.tx_hash == tx_hash), None)
    if transaction is None:
        refuse("body", "carries a raw_tx that was signed in this link")
    _not_ahead("sent_at", body["sent_at"], at)
    if _is_far_before(body["sent_at"], transaction.signed_at):
        refuse("sent_at", "is not more than 5 s before the signature's at", Reason.CLOCK_SKEW)
    request = OpenRequest(node, attempt, tx_hash, request_id, body["sent_at"])
    return head._replace(
        state=State.SUBMITTED if head.state is State.SIGNED else head.state,
        step=head.step + 1,
        at=at,
        attempts=tuple(attempts.items()),
        open_requests=(*head.open_requests, request)[-MAX_OPEN_REQUESTS:],
    )


def _response(head: LinkHead, body: dict[str, Any], at: datetime) -> LinkHead:
    node, attempt = body["node"], body["attempt"]
    request = next((one for one in head.open_requests if one.node == node and one.attempt == attempt), None)
    if request is None:
        refuse("attempt", "is that of a request to the node without a response", Reason.OUT_OF_ORDER)
    _not_ahead("received_at", body["received_at"], at)
    if _is_far_before(body["received_at"], request.sent_at):
        refuse("received_at", "is not more than 5 s before sent_at", Reason.CLOCK_SKEW)
    answered = body["http_status"] is not None
    accepted = body["http_status"] == 200 and accepts(from_hex(body["body"]), request.request_id, request.tx_hash)
    if body["tx_hash"] != (request.tx_hash if accepted else None):
        refuse("tx_hash", "is the JSON-RPC result, equal to the signature's, or null where there is none")
    signed = head.signed
    if answered:
        signed = tuple(tx._replace(answered=True) if tx.tx_hash == request.tx_hash else tx for tx in signed)
    still_open = tuple(one for one in head.open_requests if one is not request)
    return head._replace(step=head.step + 1, at=at, signed=signed, open_requests=still_open)


def _inclusion(head: LinkHead, body: dict[str, Any], at: datetime) -> LinkHead:
    status, block_hash = body["status"], body["block_hash"]
    if head.status is not None:
        if block_hash != head.block_hash:
            refuse("block_hash", "is the included one until a revocation names it", Reason.OUT_OF_ORDER)
        if _STATUS_RANK[status] <= _STATUS_RANK[head.status]:
            refuse("status", f"is above {head.status}", Reason.OUT_OF_ORDER)
    tx_hash = _proven_transaction(body["transaction_proof"])
    transaction = next((tx for tx in head.signed if tx.tx_hash == tx_hash), None)
    if transaction is None:
        refuse("transaction_proof", "ends in a raw_tx that was signed in this link")
    if not transaction.answered:
        refuse("kind", "is not inclusion before a node answered a request of that transaction", Reason.OUT_OF_ORDER)
    timestamp_s = _check_header(body)
    if timestamp_s < (parse_time(transaction.intent_at) - BLOCK_TOLERANCE).timestamp():
        refuse("header_rlp", "has a timestamp not more than 15 s before the intent's at", Reason.CLOCK_SKEW)
    if status == "finalized":
        return _closed(head, State.FINALIZED, at)
    state = State.SAFE if status == "safe" else State.INCLUDED
    return head._replace(state=state, step=head.step + 1, at=at, status=status, block_hash=block_hash)


def _revocation(head: LinkHead, body: dict[str, Any], at: datetime) -> LinkHead:
    if body["block_hash"] != head.block_hash:
        refuse("block_hash", "is that of the current inclusion", Reason.OUT_OF_ORDER)
    return head._replace(state=State.SUBMITTED, step=head.step + 1, at=at, status=None, block_hash=None)


def _administrative(head: LinkHead, body: dict[str, Any], at: datetime) -> LinkHead:
    return head._replace(state=State.ADMINISTRATIVE, step=head.step + 1, at=at)


_SUBMITTED = frozenset({State.SUBMITTED, State.INCLUDED, State.SAFE})
_FREE = (frozenset({State.NEW, State.ADMINISTRATIVE}), _administrative)

# Requests and signatures that were on their way when a node reported the inclusion are still entered after it.
GRAMMAR: dict[Kind, tuple[frozenset[State], Callable[[LinkHead, dict[str, Any], datetime], LinkHead]]] = {
    Kind.INTENT: (frozenset({State.NEW, State.BUILT, State.SIGNED, State.SUBMITTED}), _intent),
    Kind.SIGNATURE: (_SUBMITTED | {State.BUILT, State.SIGNED}, _signature),
    Kind.REQUEST: (_SUBMITTED | {State.SIGNED}, _request),
    Kind.RESPONSE: (_SUBMITTED, _response),
    Kind.INCLUSION: (_SUBMITTED, _inclusion),
    Kind.REVOCATION: (frozenset({State.INCLUDED, State.SAFE}), _revocation),
    Kind.POLICY: _FREE,
    Kind.KEY: _FREE,
    Kind.EXPORT: _FREE,
    Kind.ARCHIVE: _FREE,
}

_TERM_FIELDS = {"sender": "from", "data_sha256": "data", "nonce": "unsigned_tx"}


def _closed(head: LinkHead, state: State, at: datetime) -> LinkHead:
    return LinkHead(state, head.step + 1, at, head.trace_id, head.leaf_hash)


# Times of one form are in order as texts; a well-formed body's need not be parsed to be compared.


@lru_cache(maxsize=16)  # the entries of one commit share their time
def _latest(at: datetime) -> str:
    return format_time(at + CLOCK_TOLERANCE)


def _not_ahead(field: str, time: str, at: datetime) -> None:
    if time > _latest(at):
        refuse(field, "is not more than 5 s after the log's clock", Reason.CLOCK_SKEW)


def _is_far_before(time: str, other: str) -> bool:
    return time < other and parse_time(time) < parse_time(other) - CLOCK_TOLERANCE


def _terms(body: dict[str, Any]) -> Terms:
    """The terms of an intent, once its body agrees with its unsigned transaction."""
    unsigned_tx = from_hex(body["unsigned_tx"])
    if body["tx_sign_hash"] != to_hex(sha256(unsigned_tx).digest()):
        refuse("tx_sign_hash", "is SHA-256 of unsigned_tx")
    if body["signing_digest"] != to_hex(keccak256(unsigned_tx)):
        refuse("signing_digest", "is keccak-256 of unsigned_tx")
    if body["account"] != f"{body['chain_id']}:{body['from']}":
        refuse("account", "is chain_id:from")
    tx = decode_unsigned(unsigned_tx)
    for field, value in (
        ("chain_id", f"eip155:{tx.chain_id}"),
        ("to", None if tx.to is None else to_hex(tx.to)),
        ("value_wei", str(tx.value_wei)),
        ("data", to_hex(tx.data)),
    ):
        if body[field] != value:
            refuse(field, "is that of unsigned_tx")
    return Terms(
        chain_id=body["chain_id"],
        sender=body["from"],
        to=body["to"],
        value_wei=body["value_wei"],
        data_sha256=to_hex(sha256(tx.data).digest()),
        nonce=tx.nonce,
    )


def _sent_transaction(body_hex: str) -> tuple[int | str, str]:
    """(JSON-RPC id, tx_hash) of a request's bytes: one eth_sendRawTransaction object."""
    call = _json_object(from_hex(body_hex))
    if call is None or call.keys() != {"jsonrpc", "id", "method", "params"}:
        refuse("body", "is one JSON-RPC object of jsonrpc, id, method and params")
    if call["jsonrpc"] != "2.0" or call["method"] != "eth_sendRawTransaction":
        refuse("body", "calls eth_sendRawTransaction of JSON-RPC 2.0")
    request_id, params = call["id"], call["params"]
    if type(request_id) not in (int, str) or len(str(request_id)) > MAX_REQUEST_ID:
        refuse("body", f"has an id, a whole number or text of at most {MAX_REQUEST_ID} characters")
    if type(params) is not list or len(params) != 1 or type(params[0]) is not str:
        refuse("body", "has one parameter, the raw transaction")
    return request_id, to_hex(tx_hash_of(from_hex(params[0], "body")))


def accepts(body: bytes, request_id: int | str, tx_hash: str) -> bool:
    """Whether a response's bytes are the JSON-RPC result of the request `request_id`: the 0x-hex `tx_hash`."""
    answer = _json_object(body)
    return (
        answer is not None
        and answer.get("jsonrpc") == "2.0"
        and type(answer.get("id")) is type(request_id)
        and answer["id"] == request_id
        and answer.get("result") == tx_hash
        and answer.get("error") is None
    )


def _json_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object of `data`; None for anything else, and for what two readers could understand differently."""
    try:
        value = _STRICT_JSON.decode(data.decode())
    except (ValueError, RecursionError):
        return None
    return value if type(value) is dict else None


def _exact_integer(text: str) -> int:
    # The length first: Python refuses very long numbers with an error of its own, slowly.
    if len(text) > 17 or abs(number := int(text)) > MAX_INTEGER:
        raise ValueError("an integer is not exact as a double")
    return number


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


_STRICT_JSON = json.JSONDecoder(
    object_pairs_hook=_without_repeats, parse_int=_exact_integer, parse_constant=_no_constant
)


def _proven_transaction(proof: list[str]) -> str:
    """tx_hash of the value in the proof's last node. No key rlp(index) is a prefix of another, so it is a leaf node."""
    node = _rlp_list(from_hex(proof[-1]), "transaction_proof")
    if len(node) != 2 or not isinstance(node[1], bytes):
        refuse("transaction_proof", "ends in a leaf node")
    return to_hex(tx_hash_of(node[1]))


class _Header(NamedTuple):
    """What bodies repeat of a header, as they write it; None where a header has something else there."""

    number: bytes | None
    logs_bloom: str | None
    sha3_uncles: str | None
    timestamp_s: int | None


@lru_cache(maxsize=16)  # a block is included by every link that has a transaction in it
def _header(header_rlp: str, block_hash: str) -> _Header:
    header = from_hex(header_rlp)
    if block_hash != to_hex(keccak256(header)):
        refuse("block_hash", "is keccak-256 of header_rlp")
    fields = _rlp_list(header, "header_rlp")
    if len(fields) < 15:
        refuse("header_rlp", "has at least the 15 fields of Paris")
    uncles, bloom, number, timestamp = [
        field if isinstance(field, bytes) else None for field in (fields[1], fields[6], fields[8], fields[11])
    ]
    return _Header(
        number=number,
        logs_bloom=None if bloom is None else to_hex(bloom),
        sha3_uncles=None if uncles is None else to_hex(uncles),
        timestamp_s=None if timestamp is None or timestamp[:1] == b"\x00" else int.from_bytes(timestamp, "big"),
    )


def _check_header(body: dict[str, Any]) -> int:
    """The block's timestamp, once block_hash, block_number, logs_bloom and sha3_uncles are the header's."""
    header = _header(body["header_rlp"], body["block_hash"])
    if header.number != rlp.encode_int(body["block_number"]):
        refuse("block_number", "is the header's")
    if header.logs_bloom != body["logs_bloom"]:
        refuse("logs_bloom", "is the header's")
    if header.sha3_uncles != body["sha3_uncles"]:
        refuse("sha3_uncles", "is the header's")
    if header.timestamp_s is None:
        refuse("header_rlp", "has a timestamp without leading zeros")
    return header.timestamp_s


def _rlp_list(data: bytes, field: str) -> Sequence[rlp.Item]:
    try:
        item = rlp.decode(data)
    except rlp.RlpError as error:
        refuse(field, f"is canonical RLP: {error}")
    if isinstance(item, bytes):
        refuse(field, "is an RLP list")
    return item
