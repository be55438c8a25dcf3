"""Makes bundles that are consistent all the way down, with keys of its own, so that a test can break one rule alone.

Nothing of the verifier is used for hashing, tries or notes (RLP is the `rlp` package), except CometBFT's encodings,
which the `anchored` vector of a real chain checks.
"""

import base64
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256

import coincurve
import rfc8785
import rlp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sha3 import keccak_256

ORIGIN = "log.test/evidence"
LINK_ID = "transfer-1"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CHAIN = 31337
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EVIDENCE_KEY = Ed25519PrivateKey.from_private_bytes(b"\x11" * 32)
WALLET_KEY = coincurve.PrivateKey(b"\x22" * 32)
RECIPIENT = bytes.fromhex("56a8fd222855f32a369f6918c1ba5e443291fcff")
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def keccak(data: bytes) -> bytes:
    return keccak_256(data).digest()


def hexed(data: bytes) -> str:
    return "0x" + data.hex()


def iso(seconds: float) -> str:
    """The time `seconds` after START."""
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def address(key: coincurve.PrivateKey) -> bytes:
    return keccak(key.public_key.format(compressed=False)[1:])[12:]


# Merkle-Patricia trie


def _compact(path: str, leaf: bool) -> bytes:
    flag = (2 if leaf else 0) + len(path) % 2
    return bytes.fromhex((f"{flag:x}" if len(path) % 2 else f"{flag:x}0") + path)


def _shared(paths: list[str]) -> str:
    low, high = min(paths), max(paths)
    return low[: next((i for i, digit in enumerate(low) if digit != high[i]), len(low))]


def _node(items: list[tuple[str, bytes]]) -> list:
    if len(items) == 1:
        return [_compact(items[0][0], True), items[0][1]]
    shared = _shared([path for path, _ in items])
    if shared:
        return [_compact(shared, False), _reference([(p[len(shared) :], v) for p, v in items])]
    branch = [_reference([(p[1:], v) for p, v in items if p[:1] == digit]) for digit in "0123456789abcdef"]
    return [*branch, next((v for p, v in items if not p), b"")]


def _reference(items: list[tuple[str, bytes]]) -> object:
    if not items:
        return b""
    node = _node(items)
    encoded = rlp.encode(node)
    return node if len(encoded) < 32 else keccak(encoded)


def trie_proof(pairs: dict[bytes, bytes], key: bytes) -> tuple[bytes, list[bytes]]:
    """(root, nodes from root to leaf) for `key`."""
    return _trie_proof(tuple(pairs.items()), key)


@lru_cache(maxsize=64)
def _trie_proof(pairs: tuple[tuple[bytes, bytes], ...], key: bytes) -> tuple[bytes, list[bytes]]:
    items, path = [(k.hex(), v) for k, v in pairs], key.hex()
    root = keccak(rlp.encode(_node(items)))
    proof = []
    while True:
        encoded = rlp.encode(_node(items))
        if len(encoded) >= 32 or not proof:
            proof.append(encoded)
        if len(items) == 1:
            return root, proof
        shared = _shared([p for p, _ in items]) or path[:1]
        if not path:
            return root, proof
        items, path = [(p[len(shared) :], v) for p, v in items if p.startswith(shared)], path[len(shared) :]


# Transactions


@dataclass
class Tx:
    tx_type: int = 2
    to: bytes | None = RECIPIENT
    value: int = 10**18 + 7
    data: bytes = b""
    nonce: int = 0
    fee: int = 3_000_000_000
    chain: int = CHAIN
    access_list: list = field(default_factory=list)

    def fields(self) -> list:
        purpose = [self.to or b"", self.value, self.data]
        if self.tx_type == 0:
            return [self.nonce, self.fee, 200_000, *purpose]
        fees = [self.fee] if self.tx_type == 1 else [1_000_000_000, self.fee]
        return [self.chain, self.nonce, *fees, 200_000, *purpose, self.access_list]

    def unsigned(self) -> bytes:
        if self.tx_type == 0:
            return rlp.encode([*self.fields(), self.chain, 0, 0])
        return bytes([self.tx_type]) + rlp.encode(self.fields())

    def raw(self, r: int, s: int, y_parity: int) -> bytes:
        if self.tx_type == 0:
            return rlp.encode([*self.fields(), self.chain * 2 + 35 + y_parity, r, s])
        return bytes([self.tx_type]) + rlp.encode([*self.fields(), y_parity, r, s])


def sign(digest: bytes, key: coincurve.PrivateKey = WALLET_KEY) -> tuple[int, int, int]:
    blob = key.sign_recoverable(digest, hasher=None)
    return int.from_bytes(blob[:32], "big"), int.from_bytes(blob[32:64], "big"), blob[64]


# Entries of a link


@dataclass
class Draft:
    """An entry to be: `at` in seconds after START; `leaf` overrides members of the leaf."""

    kind: str
    at: float
    body: dict
    leaf: dict = field(default_factory=dict)
    salt: bytes = b"\x33" * 32


def intent(tx: Tx, at: float = 0.0, decision: str = "allow", key: coincurve.PrivateKey = WALLET_KEY) -> Draft:
    sender = hexed(address(key))
    unsigned = tx.unsigned()
    body = {
        "account": f"eip155:{tx.chain}:{sender}",
        "chain_id": f"eip155:{tx.chain}",
        "from": sender,
        "to": None if tx.to is None else hexed(tx.to),
        "value_wei": str(tx.value),
        "data": hexed(tx.data),
        "unsigned_tx": hexed(unsigned),
        "tx_sign_hash": hexed(sha256(unsigned).digest()),
        "signing_digest": hexed(keccak(unsigned)),
        "key_id": "wallet-1/0",
        "key_version": 1,
        "policy": {"version": 3, "sha256": hexed(b"\x44" * 32), "decision": decision, "rules": ["daily-limit"]},
        "actor": "alice",
        "source_ip": "10.0.0.7",
        "client_fingerprint": None,
        "requested_at": iso(at),
    }
    return Draft("intent", at, body)


def signature(tx: Tx, at: float = 0.1, key: coincurve.PrivateKey = WALLET_KEY, high_s: bool = False) -> Draft:
    r, s, y_parity = sign(keccak(tx.unsigned()), key)
    if high_s:
        s, y_parity = CURVE_ORDER - s, 1 - y_parity
    raw = tx.raw(r, s, y_parity)
    body = {
        "status": "success",
        "algorithm": "ecdsa_secp256k1",
        "r": hexed(r.to_bytes(32, "big")),
        "s": hexed(s.to_bytes(32, "big")),
        "y_parity": y_parity,
        "raw_tx": hexed(raw),
        "tx_hash": hexed(keccak(raw)),
        "duration_ms": 1.3,
        "token": {"label": "goldenlink", "serial": "8f1b2c", "library": "SoftHSM 2.6.1"},
        "error": None,
    }
    return Draft("signature", at, body)


def failed_signature(at: float = 0.1, status: str = "failed") -> Draft:
    body = dict.fromkeys(("r", "s", "y_parity", "raw_tx", "tx_hash"))
    body |= {"status": status, "algorithm": "ecdsa_secp256k1", "duration_ms": 2, "token": None, "error": "session lost"}
    return Draft("signature", at, body)


def raw_tx(signed: Draft) -> bytes:
    return bytes.fromhex(signed.body["raw_tx"][2:])


def request(signed: Draft, at: float = 0.2, attempt: int = 1, node: str = "node-a", **call: object) -> Draft:
    rpc = {"jsonrpc": "2.0", "id": attempt, "method": "eth_sendRawTransaction", "params": [signed.body["raw_tx"]]}
    body = {
        "node": node,
        "body": hexed(json.dumps(rpc | call).encode()),
        "batch": None,
        "sent_at": iso(at),
        "attempt": attempt,
    }
    return Draft("request", at, body)


def response(signed: Draft, at: float = 0.3, attempt: int = 1, node: str = "node-a", **answer: object) -> Draft:
    rpc = {"jsonrpc": "2.0", "id": attempt, "result": signed.body["tx_hash"]} | answer
    body = {
        "node": node,
        "attempt": attempt,
        "client_version": "anvil/v1.7.1",
        "http_status": 200,
        "headers": {"content-type": "application/json", "x-node-id": node},
        "body": hexed(json.dumps(rpc).encode()),
        "tx_hash": rpc["result"] if "error" not in answer else None,
        "received_at": iso(at),
    }
    return Draft("response", at, body)


def error_response(signed: Draft, at: float = 0.3, attempt: int = 1, node: str = "node-a") -> Draft:
    draft = response(signed, at, attempt, node)
    error = {"jsonrpc": "2.0", "id": attempt, "error": {"code": -32000, "message": "already known"}}
    draft.body |= {"body": hexed(json.dumps(error).encode()), "tx_hash": None}
    return draft


def no_answer(at: float = 0.3, attempt: int = 1, node: str = "node-a") -> Draft:
    body = dict.fromkeys(("client_version", "http_status", "tx_hash"))
    body |= {"node": node, "attempt": attempt, "headers": {}, "body": "0x", "received_at": iso(at)}
    return Draft("response", at, body)


@dataclass
class Block:
    """A block that holds `raw` at `index` among others."""

    raw: bytes
    index: int = 1
    others: int = 20
    number: int = 77
    timestamp: int = int(START.timestamp()) + 1
    receipt_status: bytes = b"\x01"
    receipt_prefix: bytes | None = None
    receipt_bloom: bytes = bytes(255) + b"\x05"
    bloom: bytes = bytes(255) + b"\x07"
    extra_fields: int = 6
    edit_header: Callable[[list], None] = lambda fields: None

    def receipt(self) -> bytes:
        log = [b"\x66" * 20, [b"\x77" * 32, b"\x88" * 32], b"data"]
        payload = rlp.encode([self.receipt_status, 21_000, self.receipt_bloom, [log]])
        prefix = self.raw[:1] if self.raw[0] < 0xC0 else b""
        return (prefix if self.receipt_prefix is None else self.receipt_prefix) + payload

    def inclusion(self, status: str, at: float, nodes: tuple[str, ...] = ("node-a", "node-b")) -> Draft:
        key = rlp.encode(self.index)
        transactions = {rlp.encode(i): b"\x02" + rlp.encode([i, b"x" * 90]) for i in range(self.others)}
        receipts = {rlp.encode(i): b"\x02" + rlp.encode([i, b"y" * 300]) for i in range(self.others)}
        tx_root, tx_proof = trie_proof(transactions | {key: self.raw}, key)
        receipt_root, receipt_proof = trie_proof(receipts | {key: self.receipt()}, key)
        uncles = keccak(rlp.encode([]))
        header = [b"\x01" * 32, uncles, b"\x02" * 20, b"\x03" * 32, tx_root, receipt_root, self.bloom, 0, self.number]
        header += [30_000_000, 21_000, self.timestamp, b"extra", b"\x04" * 32, bytes(8), 7, b"\x05" * 32, 0, 0]
        header = [*header, b"\x06" * 32, b"\x07" * 32][: 15 + self.extra_fields]
        self.edit_header(header)
        encoded = rlp.encode(header)
        body = {
            "status": status,
            "block_number": self.number,
            "block_hash": hexed(keccak(encoded)),
            "header_rlp": hexed(encoded),
            "transaction_index": self.index,
            "transaction_proof": [hexed(node) for node in tx_proof],
            "receipt_rlp": hexed(self.receipt()),
            "receipt_proof": [hexed(node) for node in receipt_proof],
            "logs_bloom": hexed(self.bloom),
            "sha3_uncles": hexed(uncles),
            "agreeing_nodes": list(nodes),
        }
        return Draft("inclusion", at, body)


def revocation(included: Draft, at: float) -> Draft:
    return Draft("revocation", at, {"block_hash": included.body["block_hash"], "reason": "reorg", "depth": 1})


def plain_link(tx: Tx | None = None, **block: object) -> list[Draft]:
    """Intent to finalized; the block is the last thing to happen, `block` edits it."""
    tx = tx or Tx()
    signed = signature(tx)
    mined = Block(raw_tx(signed), **block)
    ends = [mined.inclusion(status, 2.0 + i) for i, status in enumerate(("included", "safe", "finalized"))]
    return [intent(tx), signed, request(signed), response(signed), *ends]


# The log around a link


@dataclass
class Tree:
    levels: list[list[bytes]]

    @classmethod
    def over(cls, leaves: list[bytes]) -> "Tree":
        """`leaves` are leaf hashes."""
        levels = [leaves]
        while len(levels[-1]) > 1:
            below = levels[-1]
            level = [sha256(b"\1" + below[i] + below[i + 1]).digest() for i in range(0, len(below) - 1, 2)]
            levels.append(level + below[len(below) & ~1 :])
        return cls(levels)

    def proof(self, index: int) -> list[bytes]:
        proof = []
        for level in self.levels[:-1]:
            if index ^ 1 < len(level):
                proof.append(level[index ^ 1])
            index >>= 1
        return proof


def vkey(key: Ed25519PrivateKey, name: str = ORIGIN) -> tuple[str, bytes]:
    """(the C2SP vkey, the key id)."""
    typed = b"\x01" + key.public_key().public_bytes_raw()
    key_id = sha256(name.encode() + b"\n" + typed).digest()[:4]
    return f"{name}+{key_id.hex()}+{base64.b64encode(typed).decode()}", key_id


def note_line(text: str, key: Ed25519PrivateKey = EVIDENCE_KEY, name: str = ORIGIN) -> str:
    signed = vkey(key, name)[1] + key.sign(text.encode())
    return f"— {name} {base64.b64encode(signed).decode()}\n"


def leaf_bytes(draft: Draft, step: int, prev: bytes) -> bytes:
    leaf = {
        "v": 1,
        "kind": draft.kind,
        "link_id": LINK_ID,
        "step": step,
        "prev": hexed(prev) if prev else "",
        "at": iso(draft.at),
        "trace_id": TRACE_ID,
        "span_id": "b7ad6b7169203331",
        "body": hexed(sha256(draft.salt + rfc8785.dumps(draft.body)).digest()),
    } | draft.leaf
    return rfc8785.dumps({name: value for name, value in leaf.items() if value is not ...})


def seal(drafts: list[Draft], tree_size: int = 100, gap: int = 3) -> dict:
    """The bundle of `drafts`, every `gap`-th leaf of a log of `tree_size`, as parsed JSON."""
    leaves = [sha256(b"\0other" + i.to_bytes(4, "big")).digest() for i in range(tree_size)]
    entries, prev = [], b""
    for step, draft in enumerate(drafts):
        leaf = leaf_bytes(draft, step, prev)
        prev = sha256(b"\0" + leaf).digest()
        index = 40 + step * gap
        leaves[index] = prev
        encoded = {
            "leaf": base64.b64encode(leaf).decode(),
            "body": base64.b64encode(rfc8785.dumps(draft.body)).decode(),
        }
        entries.append({"index": index, **encoded, "salt": hexed(draft.salt)})
    tree = Tree.over(leaves)
    for entry in entries:
        entry["proof"] = [hexed(h) for h in tree.proof(entry["index"])]
    text = f"{ORIGIN}\n{tree_size}\n{base64.b64encode(tree.levels[-1][0]).decode()}\n"
    return {
        "format": "goldenlink.bundle.v1",
        "link_id": LINK_ID,
        "trace_id": TRACE_ID,
        "entries": entries,
        "checkpoint": text + "\n" + note_line(text),
        "anchor": None,
    }


def trust(min_agreeing_nodes: int = 2, ledger: dict | None = None) -> dict:
    return {
        "format": "goldenlink.trust.v1",
        "evidence_keys": [vkey(EVIDENCE_KEY)[0]],
        "chain_ids": [f"eip155:{CHAIN}"],
        "min_agreeing_nodes": min_agreeing_nodes,
        "ledger": ledger,
    }


def edited(drafts: list[Draft], position: int, **members: object) -> list[Draft]:
    """A copy of `drafts` with members of one body replaced; `...` removes a member."""
    copied = copy.deepcopy(drafts)
    body = copied[position].body | members
    copied[position].body = {name: value for name, value in body.items() if value is not ...}
    return copied
