"""Headers, receipts and transactions re-encoded from JSON-RPC, so that hashes and roots can be recomputed here.

A node's JSON is a claim; what is encoded from it is believed only because it hashes to what the header commits to.
Sources: Yellow Paper 4.3; EIP-1559, 4895, 4844, 4788, 7685 (header fields); EIP-658, 2718, 2930 (the others).
"""

from __future__ import annotations

import re
from typing import Any

from services.core import rlp
from services.core.digests import keccak256
from services.core.errors import Reason, WalletError

# Leading zeros are tolerated: nodes differ in how they write r and s.
_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")

# (JSON name, size in bytes, -1 for any, None for an integer), in header order.
_PARIS_FIELDS: tuple[tuple[str, int | None], ...] = (
    ("parentHash", 32),
    ("sha3Uncles", 32),
    ("miner", 20),
    ("stateRoot", 32),
    ("transactionsRoot", 32),
    ("receiptsRoot", 32),
    ("logsBloom", 256),
    ("difficulty", None),
    ("number", None),
    ("gasLimit", None),
    ("gasUsed", None),
    ("timestamp", None),
    ("extraData", -1),
    ("mixHash", 32),
    ("nonce", 8),
)
_LATER_FIELDS: tuple[tuple[str, int | None], ...] = (
    ("baseFeePerGas", None),  # London, EIP-1559
    ("withdrawalsRoot", 32),  # Shanghai, EIP-4895
    ("blobGasUsed", None),  # Cancun, EIP-4844
    ("excessBlobGas", None),
    ("parentBeaconBlockRoot", 32),  # EIP-4788
    ("requestsHash", 32),  # Prague, EIP-7685
)


def header_rlp(block: dict[str, Any]) -> bytes:
    """The header of an eth_getBlockByHash object; its keccak-256 is the object's `hash`.

    Raises:
        WalletError: NODE_UNAVAILABLE if a field is missing or malformed, or the hash differs (a header with fields that
            are not known here looks the same).
    """
    present = [(name, size) for name, size in _LATER_FIELDS if _member(block, name) is not None]
    header = rlp.encode([_field(block, name, size) for name, size in (*_PARIS_FIELDS, *present)])
    _check_hash(block, header)
    return header


def receipt_rlp(receipt: dict[str, Any]) -> bytes:
    """The EIP-2718 form of an eth_getBlockReceipts element: type byte (none for legacy) ‖ RLP.

    Raises:
        WalletError: NODE_UNAVAILABLE if a field is missing or malformed; pre-Byzantium receipts (no status) are.
    """
    logs: list[rlp.Item] = [
        [
            _field(log, "address", 20),
            [_data(topic, 32, "topics") for topic in _list(log, "topics")],
            _field(log, "data"),
        ]
        for log in _list(receipt, "logs")
    ]
    body = rlp.encode(
        [
            _field(receipt, "status", None),
            _field(receipt, "cumulativeGasUsed", None),
            _field(receipt, "logsBloom", 256),
            logs,
        ]
    )
    return _type_prefix(receipt) + body


def raw_transaction(tx: dict[str, Any]) -> bytes:
    """The raw transaction of a full transaction object of type 0, 1 or 2; its keccak-256 is the object's `hash`.

    Raises:
        WalletError: NODE_UNAVAILABLE for other types, malformed fields or a differing hash: ask the node for
            eth_getRawTransactionByHash instead.
    """
    prefix = _type_prefix(tx)
    to = b"" if _member(tx, "to") is None else _field(tx, "to", 20)
    tail: list[rlp.Item] = [_field(tx, "gas", None), to, _field(tx, "value", None), _field(tx, "input")]
    signature: list[rlp.Item] = [_field(tx, "v", None), _field(tx, "r", None), _field(tx, "s", None)]
    match prefix:
        case b"":
            fees, head = ["gasPrice"], ["nonce"]
        case b"\x01":
            fees, head = ["gasPrice"], ["chainId", "nonce"]
        case b"\x02":
            fees, head = ["maxPriorityFeePerGas", "maxFeePerGas"], ["chainId", "nonce"]
        case _:
            raise _malformed("type", "0, 1 or 2")
    if prefix:
        tail.append(
            [
                [_field(entry, "address", 20), [_data(key, 32, "storageKeys") for key in _list(entry, "storageKeys")]]
                for entry in _list(tx, "accessList")
            ]
        )
    raw_tx = prefix + rlp.encode([*(_field(tx, name, None) for name in (*head, *fees)), *tail, *signature])
    _check_hash(tx, raw_tx)
    return raw_tx


def _type_prefix(record: dict[str, Any]) -> bytes:
    """Empty for legacy, else the type as one byte; nodes leave the field out before Berlin."""
    return b"" if _member(record, "type") is None else _field(record, "type", None)


def _check_hash(record: dict[str, Any], encoded: bytes) -> None:
    if keccak256(encoded) != _field(record, "hash", 32):
        raise _malformed("hash", "keccak-256 of the encoded record")


def _field(record: object, name: str, size: int | None = -1) -> bytes:
    """A field as RLP bytes: of `size` bytes, of any (-1), or an integer (None)."""
    value = _member(record, name)
    if size is not None:
        return _data(value, size, name)
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise _malformed(name, "a hex quantity of at most 256 bits")
    return rlp.encode_int(int(value, 16))


def _member(record: object, name: str) -> object:
    if not isinstance(record, dict):
        raise _malformed(name, "a member of an object")
    return record.get(name)


def _data(value: object, size: int, name: str) -> bytes:
    if isinstance(value, str) and value.startswith("0x"):
        try:
            data = bytes.fromhex(value[2:])
        except ValueError as error:
            raise _malformed(name, "hex") from error
        if size in (-1, len(data)):
            return data
    raise _malformed(name, "hex" if size == -1 else f"hex of {size} bytes")


def _list(record: object, name: str) -> list[Any]:
    value = _member(record, name)
    if not isinstance(value, list):
        raise _malformed(name, "a list")
    return value


def _malformed(field: str, rule: str) -> WalletError:
    return WalletError(Reason.NODE_UNAVAILABLE, "the node's answer is malformed", field=field, rule=rule)
