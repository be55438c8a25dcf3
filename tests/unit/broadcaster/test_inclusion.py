"""Inclusion proofs from a real node's block, and from what a lying node would make of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from services.broadcaster.inclusion import inclusion_body, opaque_transactions, prove_inclusions
from services.core.canonical import canonical_json, from_hex, parse_canonical
from services.core.entries import Kind, check_body
from services.core.errors import Reason, WalletError
from services.core.tries import verify_proof

VECTOR = json.loads((Path(__file__).parents[2] / "vectors" / "anvil" / "mixed_block.json").read_text())
BLOCK: dict[str, Any] = VECTOR["block"]
RECEIPTS: list[dict[str, Any]] = VECTOR["receipts"]
BLOCK_HASH = from_hex(BLOCK["hash"])
HASHES = frozenset(from_hex(tx["hash"]) for tx in BLOCK["transactions"])


def test_every_transaction_is_proven_with_what_it_paid() -> None:
    found = prove_inclusions(BLOCK, RECEIPTS, {}, BLOCK_HASH, HASHES)
    assert {one.tx_hash for one in found} == HASHES
    for one, receipt in zip(found, RECEIPTS, strict=True):
        assert one.receipt_status == int(receipt["status"], 16)
        assert one.fee_paid_wei == int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
        body = json.loads(inclusion_body(one.proof, "included", ["node-a"]))
        check_body(Kind.INCLUSION, body)
        proof = [from_hex(node) for node in body["receipt_proof"]]
        root = from_hex(BLOCK["receiptsRoot"])
        assert verify_proof(root, body["transaction_index"], from_hex(body["receipt_rlp"]), proof)


@pytest.mark.parametrize("status", ["included", "safe", "finalized"])
def test_the_body_for_each_status_is_canonical(status: str) -> None:
    one = prove_inclusions(BLOCK, RECEIPTS, {}, BLOCK_HASH, HASHES)[0]
    expected = json.loads(one.proof) | {"status": status, "agreeing_nodes": ["node-a", "node-b"]}
    body = inclusion_body(one.proof, status, ["node-a", "node-b"])
    assert body == canonical_json(expected)
    assert parse_canonical(body)["status"] == status


def _change_status(block: Any, receipts: Any) -> None:
    receipts[0]["status"] = "0x0"


def _drop_receipt(block: Any, receipts: Any) -> None:
    receipts.pop()


def _swap_transactions(block: Any, receipts: Any) -> None:
    block["transactions"].reverse()


def _change_header(block: Any, receipts: Any) -> None:
    block["timestamp"] = "0x1"


def _no_receipts(block: Any, receipts: Any) -> None:
    receipts[:] = ["nonsense"]


@pytest.mark.parametrize("lie", [_change_status, _drop_receipt, _swap_transactions, _change_header, _no_receipts])
def test_a_lie_does_not_hash_to_the_block(lie: Any) -> None:
    block, receipts = copy.deepcopy(BLOCK), copy.deepcopy(RECEIPTS)
    lie(block, receipts)
    with pytest.raises(WalletError) as refused:
        prove_inclusions(block, receipts, {}, BLOCK_HASH, HASHES)
    assert refused.value.reason is Reason.NODE_UNAVAILABLE


def test_another_block_than_the_agreed_one_is_refused() -> None:
    with pytest.raises(WalletError, match="NODE_UNAVAILABLE"):
        prove_inclusions(BLOCK, RECEIPTS, {}, b"\x01" * 32, HASHES)


def test_transactions_of_other_types_are_asked_for_raw() -> None:
    block = {"transactions": [{"hash": "0x01", "type": "0x2"}, {"hash": "0x02", "type": "0x3"}, {"hash": "0x03"}]}
    assert opaque_transactions(block) == ["0x02"]
