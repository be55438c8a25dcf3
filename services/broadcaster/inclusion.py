"""Proof that a block holds a transaction and its receipt, built from a node's JSON and believed only by its hashes.

Pure. Source: BUNDLE, "Bodies", inclusion; Yellow Paper 4.3.2 (both tries) and EIP-1559 (the price that is paid).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.core import rlp, tries
from services.core.blocks import header_rlp, raw_transaction, receipt_rlp
from services.core.canonical import canonical_json, to_hex
from services.core.digests import keccak256
from services.core.errors import Reason, WalletError
from services.core.transactions import Eip1559Transaction, decode_raw


@dataclass(frozen=True, slots=True)
class Inclusion:
    """One transaction's place in a block. `proof` is the inclusion body, to be completed by `inclusion_body`."""

    tx_hash: bytes
    block_number: int
    block_hash: bytes
    receipt_status: int  # EIP-658: 1 success, 0 reverted
    fee_paid_wei: int
    proof: bytes


def opaque_transactions(block: Mapping[str, Any]) -> list[str]:
    """Hashes of the block's transactions that cannot be re-encoded here: ask eth_getRawTransactionByHash for them.

    Raises:
        WalletError: NODE_UNAVAILABLE if the block has not the form of one.
    """
    return [tx["hash"] for tx in _objects(block, "transactions") if tx.get("type") not in (None, "0x0", "0x1", "0x2")]


def prove_inclusions(
    block: dict[str, Any],
    receipts: object,
    opaque: Mapping[str, bytes],
    block_hash: bytes,
    tx_hashes: frozenset[bytes],
) -> list[Inclusion]:
    """The inclusion of each of `tx_hashes` that the block `block_hash` holds.

    `block`: eth_getBlockByHash with full transactions; `receipts`: eth_getBlockReceipts; `opaque`: raw transactions by
    hash, see `opaque_transactions`.

    Raises:
        WalletError: NODE_UNAVAILABLE with field and rule, when the header does not hash to `block_hash`, or a trie's
            root is not the header's.
    """
    header = header_rlp(block)
    if keccak256(header) != block_hash:
        raise _lie("hash", "the agreed block's")
    fields = rlp.decode(header)
    assert isinstance(fields, list)
    raw_txs = [
        opaque[tx["hash"]] if tx.get("hash") in opaque else raw_transaction(tx)
        for tx in _objects(block, "transactions")
    ]
    encoded_receipts = [receipt_rlp(receipt) for receipt in _objects({"receipts": receipts}, "receipts")]
    if len(encoded_receipts) != len(raw_txs):
        raise _lie("receipts", "one a transaction")
    transactions, receipt_trie = tries.build(raw_txs), tries.build(encoded_receipts)
    if transactions.root != fields[4]:
        raise _lie("transactions", "those of transactionsRoot")
    if receipt_trie.root != fields[5]:
        raise _lie("receipts", "those of receiptsRoot")
    number = rlp.decode_int(fields[8])
    base_fee_wei = rlp.decode_int(fields[15]) if len(fields) > 15 else 0
    common = {
        "block_number": number,
        "block_hash": to_hex(block_hash),
        "header_rlp": to_hex(header),
        "logs_bloom": to_hex(_bytes(fields[6])),
        "sha3_uncles": to_hex(_bytes(fields[1])),
        "status": "included",
        "agreeing_nodes": [],
    }
    found = []
    for index, raw_tx in enumerate(raw_txs):
        tx_hash = keccak256(raw_tx)
        if tx_hash not in tx_hashes:
            continue
        transaction_proof, receipt_proof = transactions.proof(index), receipt_trie.proof(index)
        if not (
            tries.verify_proof(transactions.root, index, raw_tx, transaction_proof)
            and tries.verify_proof(receipt_trie.root, index, encoded_receipts[index], receipt_proof)
        ):
            raise WalletError(Reason.INTERNAL, "a proof that was built does not verify")
        status, gas_used = _receipt_facts(encoded_receipts, index)
        proof = canonical_json(
            {
                **common,
                "transaction_index": index,
                "transaction_proof": [to_hex(node) for node in transaction_proof],
                "receipt_rlp": to_hex(encoded_receipts[index]),
                "receipt_proof": [to_hex(node) for node in receipt_proof],
            }
        )
        fee_wei = gas_used * _price_wei(raw_tx, base_fee_wei)
        found.append(Inclusion(tx_hash, number, block_hash, status, fee_wei, proof))
    return found


def inclusion_body(proof: bytes, status: str, agreeing_nodes: Sequence[str]) -> bytes:
    """The canonical body for `status`: the proofs are the same for all three, so the bytes around them are.

    Canonical JSON puts agreeing_nodes first, and no text in the body but these two could hold the quoted names.
    """
    nodes = ",".join(f'"{name}"' for name in agreeing_nodes)
    head, rest = b'{"agreeing_nodes":[]', proof.removeprefix(b'{"agreeing_nodes":[]')
    assert len(head) + len(rest) == len(proof)
    return f'{{"agreeing_nodes":[{nodes}]'.encode() + rest.replace(
        b'"status":"included"', f'"status":"{status}"'.encode()
    )


def _receipt_facts(receipts: Sequence[bytes], index: int) -> tuple[int, int]:
    """(EIP-658 status, gas used): a receipt tells the gas of all transactions up to its own."""
    status, cumulative = _receipt_head(receipts[index])
    return status, cumulative - (_receipt_head(receipts[index - 1])[1] if index else 0)


def _receipt_head(receipt: bytes) -> tuple[int, int]:
    fields = rlp.decode(receipt if receipt[0] >= 0xC0 else receipt[1:])
    assert isinstance(fields, list)
    return rlp.decode_int(fields[0]), rlp.decode_int(fields[1])


def _price_wei(raw_tx: bytes, base_fee_wei: int) -> int:
    tx, _ = decode_raw(raw_tx)
    if isinstance(tx, Eip1559Transaction):
        return min(tx.max_fee_per_gas_wei, base_fee_wei + tx.max_priority_fee_per_gas_wei)
    return tx.gas_price_wei


def _objects(record: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = record.get(name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _lie(name, "a list of objects")
    return value


def _bytes(item: rlp.Item) -> bytes:
    assert isinstance(item, bytes)
    return item


def _lie(field: str, rule: str) -> WalletError:
    return WalletError(Reason.NODE_UNAVAILABLE, "the node's answer is not the block's", field=field, rule=rule)
