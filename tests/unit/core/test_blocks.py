import copy
import json
from pathlib import Path
from typing import Any

import pytest

from services.core import rlp
from services.core.blocks import header_rlp, raw_transaction, receipt_rlp
from services.core.digests import keccak256
from services.core.errors import Reason, WalletError
from services.core.tries import build

VECTORS = Path(__file__).parents[2] / "vectors"
ANVIL = json.loads((VECTORS / "anvil/mixed_block.json").read_text())
OFFICIAL_BLOCKS = json.loads((VECTORS / "eip2718/trans_type_blocks.json").read_text())


def to_hex(data: bytes) -> str:
    return "0x" + data.hex()


def test_a_real_header_hashes_to_its_block() -> None:
    assert to_hex(keccak256(header_rlp(ANVIL["block"]))) == ANVIL["block"]["hash"]


def test_real_transactions_re_encode() -> None:
    raw_transactions = [raw_transaction(tx) for tx in ANVIL["block"]["transactions"]]
    assert [to_hex(raw_tx) for raw_tx in raw_transactions] == ANVIL["raw_transactions"]
    assert {tx["type"] for tx in ANVIL["block"]["transactions"]} == {"0x0", "0x1", "0x2"}
    assert to_hex(build(raw_transactions).root) == ANVIL["block"]["transactionsRoot"]


def test_real_receipts_re_encode() -> None:
    receipts = ANVIL["receipts"]
    assert {receipt["status"] for receipt in receipts} == {"0x0", "0x1"}
    assert any(receipt["logs"] for receipt in receipts)
    assert to_hex(build([receipt_rlp(receipt) for receipt in receipts]).root) == ANVIL["block"]["receiptsRoot"]


NAMES = [
    "parentHash",
    "sha3Uncles",
    "miner",
    "stateRoot",
    "transactionsRoot",
    "receiptsRoot",
    "logsBloom",
    "difficulty",
    "number",
    "gasLimit",
    "gasUsed",
    "timestamp",
    "extraData",
    "mixHash",
    "nonce",
    "baseFeePerGas",
]


@pytest.mark.parametrize("block", OFFICIAL_BLOCKS)
def test_official_headers_and_receipts(block: dict[str, Any]) -> None:
    header, transactions, _ = rlp.decode(bytes.fromhex(block["rlp"][2:]))  # type: ignore[misc]
    record: dict[str, Any] = {name: to_hex(value) for name, value in zip(NAMES, header, strict=True)}
    assert header_rlp(record | {"hash": block["hash"]}) == rlp.encode(header)
    # All succeed without logs and use equal gas (the vector's README).
    gas = int(record["gasUsed"], 16) // len(transactions)
    receipts = [
        {
            "type": "0x0" if isinstance(tx, list) else hex(tx[0]),
            "status": "0x1",
            "cumulativeGasUsed": hex(gas * (index + 1)),
            "logsBloom": "0x" + "00" * 256,
            "logs": [],
        }
        for index, tx in enumerate(transactions)
    ]
    assert to_hex(build([receipt_rlp(receipt) for receipt in receipts]).root) == block["receiptTrie"]


@pytest.mark.parametrize("name", [*NAMES, "withdrawalsRoot", "blobGasUsed", "excessBlobGas", "requestsHash"])
def test_a_header_that_lacks_a_field_is_refused(name: str) -> None:
    with pytest.raises(WalletError) as refusal:
        header_rlp({key: value for key, value in ANVIL["block"].items() if key != name})
    assert refusal.value.reason is Reason.NODE_UNAVAILABLE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("parentHash", "0x00"),
        ("miner", None),
        ("number", "zz"),
        ("number", "-0x1"),
        ("number", 5),
        ("number", "0x" + "f" * 65),
        ("logsBloom", 5),
        ("extraData", "0x0"),
        ("hash", "0x" + "11" * 32),
        ("gasUsed", "0x1"),
    ],
)
def test_a_header_that_lies_is_refused(name: str, value: object) -> None:
    with pytest.raises(WalletError) as refusal:
        header_rlp(ANVIL["block"] | {name: value})
    assert (refusal.value.reason, bool(refusal.value.details["field"])) == (Reason.NODE_UNAVAILABLE, True)


@pytest.mark.parametrize("nonsense", [None, [], "0x", 5, {}])
def test_nonsense_in_place_of_an_object_is_refused(nonsense: Any) -> None:
    for encode in (header_rlp, receipt_rlp, raw_transaction):
        with pytest.raises(WalletError, match="NODE_UNAVAILABLE"):
            encode(nonsense)


def test_other_transaction_types_are_left_to_the_node() -> None:
    tx = ANVIL["block"]["transactions"][0]
    for kind in ("0x3", "0x4", "0x7e", "0x100"):
        with pytest.raises(WalletError, match="field=type"):
            raw_transaction(tx | {"type": kind})
    with pytest.raises(WalletError, match="field=hash"):
        raw_transaction(tx | {"value": "0x1"})


def test_malformed_receipts_are_refused() -> None:
    for change in (
        {"status": None},
        {"logs": None},
        {"logs": [5]},
        {"logs": [{"address": "0x"}]},
        {"logsBloom": "0x00"},
    ):
        receipt = copy.deepcopy(ANVIL["receipts"][3]) | change
        with pytest.raises(WalletError, match="NODE_UNAVAILABLE"):
            receipt_rlp(receipt)
