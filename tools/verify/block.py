"""From a signed transaction and its receipt to the hash of the block that holds them."""

from dataclasses import dataclass

from sha3 import keccak_256

from tools.verify import rlp, trie
from tools.verify.body import Inclusion
from tools.verify.refusal import Refused

# The fields common to every fork since Paris, by position: (name, fixed size in bytes or None for an integer).
_FIXED = {0: 32, 1: 32, 2: 20, 3: 32, 4: 32, 5: 32, 6: 256, 13: 32, 14: 8}
_INTEGERS = (7, 8, 9, 10, 11)
_EXTRA_DATA = 12
_MIN_FIELDS = 15


@dataclass(frozen=True, slots=True)
class Header:
    """An execution block's header; `timestamp_s` since 1970."""

    sha3_uncles: bytes
    transactions_root: bytes
    receipts_root: bytes
    logs_bloom: bytes
    number: int
    timestamp_s: int


@dataclass(frozen=True, slots=True)
class ProvenTx:
    raw_tx: bytes
    receipt_status: int
    timestamp_s: int


def _decode_header(header_rlp: bytes) -> Header:
    items = rlp.decode_list(header_rlp, "header_rlp")
    if len(items) < _MIN_FIELDS:
        raise Refused(f"header_rlp has {len(items)} fields")
    fixed = {i: rlp.string(items[i], f"header_rlp field {i}", size) for i, size in _FIXED.items()}
    integers = {i: rlp.unsigned(items[i], f"header_rlp field {i}") for i in _INTEGERS}
    rlp.string(items[_EXTRA_DATA], "header_rlp field 12")
    return Header(fixed[1], fixed[4], fixed[5], fixed[6], integers[8], integers[11])


def _check_receipt(receipt_rlp: bytes, tx_type: int, header_bloom: bytes) -> int:
    """The receipt's status, 0 or 1. Source: EIP-658, EIP-2718."""
    type_prefix = bytes([tx_type]) if tx_type else b""
    payload = receipt_rlp[len(type_prefix) :]
    if not receipt_rlp.startswith(type_prefix) or payload[:1] < b"\xc0":
        raise Refused(f"receipt_rlp is not of the transaction's type {tx_type}")
    status, gas_used, bloom, logs = rlp.sequence(rlp.decode(payload, "receipt_rlp"), "receipt_rlp", 4)
    if (number := rlp.unsigned(status, "receipt status")) > 1:
        raise Refused(f"the receipt's status is {number}")
    rlp.unsigned(gas_used, "receipt gas")
    bits = int.from_bytes(rlp.string(bloom, "receipt bloom", 256), "big")
    if bits & ~int.from_bytes(header_bloom, "big"):
        raise Refused("the receipt's bloom is not within the header's")
    for log in rlp.sequence(logs, "receipt logs"):
        address, topics, data = rlp.sequence(log, "receipt log", 3)
        rlp.string(address, "receipt log address", 20)
        for topic in rlp.sequence(topics, "receipt log topics"):
            rlp.string(topic, "receipt log topic", 32)
        rlp.string(data, "receipt log data")
    return number


def prove_inclusion(inclusion: Inclusion) -> ProvenTx:
    """The transaction that `inclusion` proves to be in its block."""
    if keccak_256(inclusion.header_rlp).digest() != inclusion.block_hash:
        raise Refused("block_hash is not the hash of header_rlp")
    header = _decode_header(inclusion.header_rlp)
    if inclusion.block_number != header.number:
        raise Refused(f"block_number is {inclusion.block_number}, the header's {header.number}")
    if inclusion.logs_bloom != header.logs_bloom:
        raise Refused("logs_bloom is not the header's")
    if inclusion.sha3_uncles != header.sha3_uncles:
        raise Refused("sha3_uncles is not the header's")
    key = rlp.encode(rlp.minimal(inclusion.transaction_index))
    raw_tx = trie.proven_value(header.transactions_root, key, inclusion.transaction_proof, "transaction_proof")
    receipt = trie.proven_value(header.receipts_root, key, inclusion.receipt_proof, "receipt_proof")
    if receipt != inclusion.receipt_rlp:
        raise Refused("receipt_rlp is not the proven receipt")
    tx_type = raw_tx[0] if raw_tx[0] < 0xC0 else 0
    status = _check_receipt(receipt, tx_type, header.logs_bloom)
    return ProvenTx(raw_tx, status, header.timestamp_s)
