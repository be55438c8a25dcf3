"""Ethereum transactions: the signing preimage, the signed form and the sender.

Source: EIP-2718, EIP-1559, EIP-2930, EIP-155, EIP-2 (low-s).
"""

from dataclasses import dataclass

import coincurve
from sha3 import keccak_256

from tools.verify import rlp
from tools.verify.refusal import Refused

LEGACY, ACCESS_LIST, DYNAMIC_FEE = 0, 1, 2
_CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_FEE_FIELDS = {LEGACY: 1, ACCESS_LIST: 1, DYNAMIC_FEE: 2}


@dataclass(frozen=True, slots=True)
class UnsignedTx:
    """A signing preimage, decoded. `items` are its RLP fields; `to` None creates a contract."""

    tx_type: int
    chain_number: int
    nonce: int
    to: bytes | None
    value_wei: int
    data: bytes
    items: list[rlp.Item]


def decode_unsigned_tx(preimage: bytes) -> UnsignedTx:
    """The transaction whose exact signing preimage is `preimage` (types 1 and 2, or legacy with EIP-155)."""
    what = "unsigned_tx"
    if not preimage:
        raise Refused("unsigned_tx is empty")
    if preimage[0] >= 0xC0:
        tx_type = LEGACY
        items = rlp.sequence(rlp.decode(preimage, what), "unsigned_tx of legacy type", 9)
        chain_item, rest = items[6], items
        if items[7] != b"" or items[8] != b"":
            raise Refused("unsigned_tx does not end in (chain id, 0, 0): EIP-155")
    elif preimage[0] in (ACCESS_LIST, DYNAMIC_FEE):
        tx_type = preimage[0]
        size = 8 if tx_type == ACCESS_LIST else 9
        items = rlp.sequence(rlp.decode(preimage[1:], what), f"unsigned_tx of type {tx_type}", size)
        chain_item, rest = items[0], items[1:]
        _check_access_list(items[-1])
    else:
        raise Refused(f"unsigned_tx has the type byte {preimage[0]}, which is not supported")
    fees = _FEE_FIELDS[tx_type]
    for item in rest[1 : 1 + fees]:
        rlp.unsigned(item, "unsigned_tx: a fee")
    rlp.unsigned(rest[1 + fees], "unsigned_tx: gas limit", 64)
    to = rlp.string(rest[2 + fees], "unsigned_tx: to")
    if len(to) not in (0, 20):
        raise Refused(f"unsigned_tx: to has {len(to)} bytes")
    return UnsignedTx(
        tx_type=tx_type,
        chain_number=rlp.unsigned(chain_item, "unsigned_tx: chain id"),
        nonce=rlp.unsigned(rest[0], "unsigned_tx: nonce", 64),
        to=to or None,
        value_wei=rlp.unsigned(rest[3 + fees], "unsigned_tx: value"),
        data=rlp.string(rest[4 + fees], "unsigned_tx: data"),
        items=items,
    )


def _check_access_list(item: rlp.Item) -> None:
    for member in rlp.sequence(item, "unsigned_tx: access list"):
        address, keys = rlp.sequence(member, "unsigned_tx: access list entry", 2)
        rlp.string(address, "unsigned_tx: access list address", 20)
        for key in rlp.sequence(keys, "unsigned_tx: access list keys"):
            rlp.string(key, "unsigned_tx: access list key", 32)


def assemble_raw_tx(transaction: UnsignedTx, y_parity: int, r: bytes, s: bytes) -> bytes:
    """The signed transaction as it goes over the wire."""
    r_item, s_item = r.lstrip(b"\0"), s.lstrip(b"\0")
    if transaction.tx_type == LEGACY:
        v = transaction.chain_number * 2 + 35 + y_parity  # EIP-155
        return rlp.encode([*transaction.items[:6], rlp.minimal(v), r_item, s_item])
    return bytes([transaction.tx_type]) + rlp.encode([*transaction.items, rlp.minimal(y_parity), r_item, s_item])


def recover_sender(digest: bytes, y_parity: int, r: bytes, s: bytes) -> bytes:
    """The address of 20 bytes whose key signed `digest`."""
    if not 0 < int.from_bytes(r, "big") < _CURVE_ORDER:
        raise Refused("r is not within the curve's order")
    if not 0 < int.from_bytes(s, "big") <= _CURVE_ORDER // 2:
        raise Refused("s is not in its lower half (EIP-2)")
    try:
        key = coincurve.PublicKey.from_signature_and_message(r + s + bytes([y_parity]), digest, hasher=None)
    except Exception:  # coincurve raises a bare Exception where no point has this r
        raise Refused("r, s and y_parity recover no public key") from None
    address: bytes = keccak_256(key.format(compressed=False)[1:]).digest()[12:]
    return address
