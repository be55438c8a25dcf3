"""The bodies of the six kinds of entry of a link: fields and their forms, nothing about how they relate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tools.verify import fields
from tools.verify.client_signature import ClientSignature, parse_client_signature
from tools.verify.refusal import Refused, quoted

_MAX_DATA_BYTES = 131_072


@dataclass(frozen=True, slots=True)
class Intent:
    account: str
    chain_id: str
    chain_number: int
    sender: bytes
    to: bytes | None
    value_wei: int
    data: bytes
    unsigned_tx: bytes
    tx_sign_hash: bytes
    signing_digest: bytes
    is_allowed: bool
    requested_at_us: int
    client_fingerprint: str | None
    client_signature: ClientSignature | None


@dataclass(frozen=True, slots=True)
class Signature:
    """A success."""

    r: bytes
    s: bytes
    y_parity: int
    raw_tx: bytes
    tx_hash: bytes


@dataclass(frozen=True, slots=True)
class FailedSignature:
    """A failure or a timeout: it proves nothing but itself."""

    error: str


@dataclass(frozen=True, slots=True)
class Request:
    node: str
    attempt: int
    body: bytes
    sent_at_us: int


@dataclass(frozen=True, slots=True)
class Response:
    """`http_status` None: the node gave no HTTP answer."""

    node: str
    attempt: int
    http_status: int | None
    body: bytes
    tx_hash: bytes | None
    received_at_us: int


@dataclass(frozen=True, slots=True)
class Inclusion:
    status: str
    block_number: int
    block_hash: bytes
    header_rlp: bytes
    transaction_index: int
    transaction_proof: list[bytes]
    receipt_rlp: bytes
    receipt_proof: list[bytes]
    logs_bloom: bytes
    sha3_uncles: bytes
    agreeing_nodes: list[str]


@dataclass(frozen=True, slots=True)
class Revocation:
    block_hash: bytes


Body: TypeAlias = Intent | Signature | FailedSignature | Request | Response | Inclusion | Revocation
_Members: TypeAlias = dict[str, object]

_POLICY = frozenset({"version", "sha256", "decision", "rules"})
_TOKEN = frozenset({"label", "serial", "library"})
_BATCH = frozenset({"sha256", "index", "size"})
_FIELDS = {
    "intent": frozenset(
        [
            "account",
            "chain_id",
            "from",
            "to",
            "value_wei",
            "data",
            "unsigned_tx",
            "tx_sign_hash",
            "signing_digest",
            "key_id",
            "key_version",
            "policy",
            "actor",
            "source_ip",
            "client_fingerprint",
            "requested_at",
        ]
    ),
    "signature": frozenset(
        ["status", "algorithm", "r", "s", "y_parity", "raw_tx", "tx_hash", "duration_ms", "token", "error"]
    ),
    "request": frozenset(["node", "body", "batch", "sent_at", "attempt"]),
    "response": frozenset(
        ["node", "attempt", "client_version", "http_status", "headers", "body", "tx_hash", "received_at"]
    ),
    "inclusion": frozenset(
        [
            "status",
            "block_number",
            "block_hash",
            "header_rlp",
            "transaction_index",
            "transaction_proof",
            "receipt_rlp",
            "receipt_proof",
            "logs_bloom",
            "sha3_uncles",
            "agreeing_nodes",
        ]
    ),
    "revocation": frozenset(["block_hash", "reason", "depth"]),
}


def parse_body(kind: str, value: object) -> Body:
    """The body of an entry of `kind`, every listed field present and well formed; further fields are allowed."""
    return _PARSERS[kind](fields.at_least(value, _FIELDS[kind], kind))


def _intent(body: _Members) -> Intent:
    policy = fields.at_least(body["policy"], _POLICY, "policy")
    fields.integer(policy["version"], "policy.version")
    fields.octets(policy["sha256"], "policy.sha256", 32)
    if policy["decision"] not in ("allow", "deny"):
        raise Refused(f"policy.decision is {quoted(policy['decision'])}")
    for rule in fields.array(policy["rules"], "policy.rules"):
        fields.text(rule, "policy.rules")
    fields.text(body["key_id"], "key_id")
    fields.integer(body["key_version"], "key_version")
    for name in ("actor", "source_ip"):
        fields.text_or_null(body[name], name)
    if body.get("supersedes") is not None:
        fields.link_id(body["supersedes"], "supersedes")
    signed = body.get("client_signature")
    data = fields.octets(body["data"], "data")
    if len(data) > _MAX_DATA_BYTES:
        raise Refused(f"data has {len(data)} bytes, more than {_MAX_DATA_BYTES}")
    return Intent(
        account=fields.text(body["account"], "account"),
        chain_id=fields.text(body["chain_id"], "chain_id"),
        chain_number=fields.chain_number(body["chain_id"], "chain_id"),
        sender=fields.octets(body["from"], "from", 20),
        to=None if body["to"] is None else fields.octets(body["to"], "to", 20),
        value_wei=fields.amount(body["value_wei"], "value_wei"),
        data=data,
        unsigned_tx=fields.octets(body["unsigned_tx"], "unsigned_tx"),
        tx_sign_hash=fields.octets(body["tx_sign_hash"], "tx_sign_hash", 32),
        signing_digest=fields.octets(body["signing_digest"], "signing_digest", 32),
        is_allowed=policy["decision"] == "allow",
        requested_at_us=fields.time_us(body["requested_at"], "requested_at"),
        client_fingerprint=fields.text_or_null(body["client_fingerprint"], "client_fingerprint"),
        client_signature=None if signed is None else parse_client_signature(signed),
    )


def _signature(body: _Members) -> Signature | FailedSignature:
    if body["algorithm"] != "ecdsa_secp256k1":
        raise Refused(f"algorithm is {quoted(body['algorithm'])}")
    is_success = body["status"] == "success"
    if not is_success and body["status"] not in ("failed", "timeout"):
        raise Refused(f"status is {quoted(body['status'])}")
    # A failure may come before there is a token or a duration; a success has both.
    if is_success or body["duration_ms"] is not None:
        duration_ms = body["duration_ms"]
        if type(duration_ms) not in (int, float) or duration_ms < 0:  # type: ignore[operator]
            raise Refused(f"duration_ms is {quoted(duration_ms)}, not a number of 0 or more")
    if is_success or body["token"] is not None:
        for name, value in fields.at_least(body["token"], _TOKEN, "token").items():
            if name in _TOKEN:
                fields.text(value, f"token.{name}")
    if not is_success:
        for name in ("r", "s", "y_parity", "raw_tx", "tx_hash"):
            if body[name] is not None:
                raise Refused(f"{name} is not null although the status is {body['status']}")
        return FailedSignature(fields.text(body["error"], "error"))
    if body["error"] is not None:
        raise Refused("error is not null although the status is success")
    y_parity = fields.integer(body["y_parity"], "y_parity")
    if y_parity > 1:
        raise Refused(f"y_parity is {y_parity}")
    return Signature(
        r=fields.octets(body["r"], "r", 32),
        s=fields.octets(body["s"], "s", 32),
        y_parity=y_parity,
        raw_tx=fields.octets(body["raw_tx"], "raw_tx"),
        tx_hash=fields.octets(body["tx_hash"], "tx_hash", 32),
    )


def _request(body: _Members) -> Request:
    if body["batch"] is not None:
        batch = fields.at_least(body["batch"], _BATCH, "batch")
        fields.octets(batch["sha256"], "batch.sha256", 32)
        if fields.integer(batch["index"], "batch.index") >= fields.integer(batch["size"], "batch.size"):
            raise Refused("batch.index is not below batch.size")
    return Request(
        node=fields.node_name(body["node"], "node"),
        attempt=fields.integer(body["attempt"], "attempt"),
        body=fields.octets(body["body"], "body"),
        sent_at_us=fields.time_us(body["sent_at"], "sent_at"),
    )


def _response(body: _Members) -> Response:
    fields.text_or_null(body["client_version"], "client_version")
    headers = fields.at_least(body["headers"], frozenset(), "headers")
    for name, value in headers.items():
        fields.text(value, "headers")
        if name != name.lower():
            raise Refused(f"headers: {quoted(name)} is not in lower case")
    response = Response(
        node=fields.node_name(body["node"], "node"),
        attempt=fields.integer(body["attempt"], "attempt"),
        http_status=None if body["http_status"] is None else fields.integer(body["http_status"], "http_status"),
        body=fields.octets(body["body"], "body"),
        tx_hash=None if body["tx_hash"] is None else fields.octets(body["tx_hash"], "tx_hash", 32),
        received_at_us=fields.time_us(body["received_at"], "received_at"),
    )
    if response.http_status is None:
        if headers or response.body or response.tx_hash is not None:
            raise Refused("http_status is null and yet there are headers, a body or a tx_hash")
    elif not 100 <= response.http_status <= 599:
        raise Refused(f"http_status is {response.http_status}")
    return response


def _inclusion(body: _Members) -> Inclusion:
    status = body["status"]
    if status not in ("included", "safe", "finalized"):
        raise Refused(f"status is {quoted(status)}")
    return Inclusion(
        status=fields.text(status, "status"),
        block_number=fields.integer(body["block_number"], "block_number"),
        block_hash=fields.octets(body["block_hash"], "block_hash", 32),
        header_rlp=fields.octets(body["header_rlp"], "header_rlp"),
        transaction_index=fields.integer(body["transaction_index"], "transaction_index"),
        transaction_proof=_nodes(body["transaction_proof"], "transaction_proof"),
        receipt_rlp=fields.octets(body["receipt_rlp"], "receipt_rlp"),
        receipt_proof=_nodes(body["receipt_proof"], "receipt_proof"),
        logs_bloom=fields.octets(body["logs_bloom"], "logs_bloom", 256),
        sha3_uncles=fields.octets(body["sha3_uncles"], "sha3_uncles", 32),
        agreeing_nodes=[
            fields.node_name(name, "agreeing_nodes") for name in fields.array(body["agreeing_nodes"], "agreeing_nodes")
        ],
    )


def _nodes(value: object, what: str) -> list[bytes]:
    return [fields.octets(node, what) for node in fields.array(value, what)]


def _revocation(body: _Members) -> Revocation:
    fields.text(body["reason"], "reason")
    fields.integer(body["depth"], "depth")
    return Revocation(fields.octets(body["block_hash"], "block_hash", 32))


_PARSERS: dict[str, Callable[[_Members], Body]] = {
    "intent": _intent,
    "signature": _signature,
    "request": _request,
    "response": _response,
    "inclusion": _inclusion,
    "revocation": _revocation,
}
