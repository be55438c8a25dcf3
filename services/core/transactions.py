"""Unsigned transactions, the exact bytes that are signed for them, and the raw transactions that nodes accept.

Three kinds: EIP-1559 (type 2, the default), EIP-2930 (type 1) and legacy with EIP-155 replay protection. Blob (3) and
set-code (4) transactions, and legacy ones without a chain id, are refused: nothing here may sign what it cannot bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from services.core import rlp
from services.core.addresses import Address
from services.core.amounts import MAX_CHAIN_ID, MAX_GAS, MAX_WEI
from services.core.digests import Digest, Signature, keccak256
from services.core.errors import Reason, WalletError

# Storage keys (32 bytes each) that a transaction announces per address. Source: EIP-2930.
AccessList: TypeAlias = tuple[tuple[Address, tuple[bytes, ...]], ...]

MAX_DATA_BYTES = 128 * 1024
# Call data, plus 32 KiB for the other fields: an access list of about 900 storage keys.
MAX_UNSIGNED_BYTES = MAX_DATA_BYTES + 32 * 1024
# EIP-2681: the last nonce is 2**64-2.
MAX_NONCE = 2**64 - 2


@dataclass(frozen=True, slots=True)
class Eip1559Transaction:
    """Type 2. Fees are wei per gas; `to` None creates a contract.

    Raises:
        WalletError: INVALID_REQUEST with `field` and `rule` if a field is out of range.
    """

    chain_id: int
    nonce: int
    max_priority_fee_per_gas_wei: int
    max_fee_per_gas_wei: int
    gas_limit: int
    to: Address | None
    value_wei: int
    data: bytes = b""
    access_list: AccessList = ()

    def __post_init__(self) -> None:
        _check(self, self.max_fee_per_gas_wei)
        if not 0 <= self.max_priority_fee_per_gas_wei <= self.max_fee_per_gas_wei:
            # EIP-1559: a transaction that tips more than it is ready to pay is invalid.
            raise _invalid("max_priority_fee_per_gas_wei", "0 … max_fee_per_gas_wei")
        _check_access_list(self.access_list)


@dataclass(frozen=True, slots=True)
class Eip2930Transaction:
    """Type 1. `gas_price_wei` is wei per gas; `to` None creates a contract.

    Raises:
        WalletError: INVALID_REQUEST with `field` and `rule` if a field is out of range.
    """

    chain_id: int
    nonce: int
    gas_price_wei: int
    gas_limit: int
    to: Address | None
    value_wei: int
    data: bytes = b""
    access_list: AccessList = ()

    def __post_init__(self) -> None:
        _check(self, self.gas_price_wei)
        _check_access_list(self.access_list)


@dataclass(frozen=True, slots=True)
class LegacyTransaction:
    """Legacy with EIP-155 replay protection. `gas_price_wei` is wei per gas; `to` None creates a contract.

    Raises:
        WalletError: INVALID_REQUEST with `field` and `rule` if a field is out of range.
    """

    chain_id: int
    nonce: int
    gas_price_wei: int
    gas_limit: int
    to: Address | None
    value_wei: int
    data: bytes = b""

    def __post_init__(self) -> None:
        _check(self, self.gas_price_wei)


UnsignedTransaction: TypeAlias = Eip1559Transaction | Eip2930Transaction | LegacyTransaction


def encode_unsigned(tx: UnsignedTransaction) -> bytes:
    """The signing preimage: type byte ‖ RLP (EIP-2718), or the nine-field list of EIP-155.

    Raises:
        WalletError: INVALID_REQUEST if it is larger than `MAX_UNSIGNED_BYTES`.
    """
    if isinstance(tx, LegacyTransaction):
        # EIP-155: hash (…, chain_id, 0, 0) in the places of v, r and s.
        encoded = rlp.encode([*_fields(tx), rlp.encode_int(tx.chain_id), b"", b""])
    else:
        encoded = _type_byte(tx) + rlp.encode(_fields(tx))
    if len(encoded) > MAX_UNSIGNED_BYTES:
        raise _invalid("unsigned_tx", f"at most {MAX_UNSIGNED_BYTES} bytes")
    return encoded


def decode_unsigned(unsigned_tx: bytes) -> UnsignedTransaction:
    """The transaction of a signing preimage; strict: `encode_unsigned` of the result is `unsigned_tx`.

    Raises:
        WalletError: INVALID_REQUEST with `field` and `rule`.
    """
    if len(unsigned_tx) > MAX_UNSIGNED_BYTES:
        raise _invalid("unsigned_tx", f"at most {MAX_UNSIGNED_BYTES} bytes")
    kind, fields = _split(unsigned_tx, "unsigned_tx")
    try:
        if kind is LegacyTransaction:
            if len(fields) != 9 or fields[7:] != [b"", b""]:
                raise _invalid("unsigned_tx", "nine fields, the last two empty (EIP-155)")
            tx = _transaction(kind, [fields[6], *fields[:6]])
        else:
            tx = _transaction(kind, fields)
    except rlp.RlpError as error:
        raise _invalid("unsigned_tx", str(error)) from error
    # Not encoded again to be compared: RLP is decoded in its one form, integers included, and no field is dropped.
    return tx


def signing_digest(unsigned: bytes | UnsignedTransaction) -> Digest:
    """keccak-256 of the signing preimage, given as bytes or as the transaction."""
    return keccak256(unsigned if isinstance(unsigned, bytes) else encode_unsigned(unsigned))


def assemble_raw(unsigned: bytes | UnsignedTransaction, signature: Signature) -> bytes:
    """The raw transaction for eth_sendRawTransaction.

    Raises:
        WalletError: INVALID_REQUEST if `unsigned` are bytes that `decode_unsigned` refuses.
    """
    tx = decode_unsigned(unsigned) if isinstance(unsigned, bytes) else unsigned
    r, s = rlp.encode_int(signature.r), rlp.encode_int(signature.s)
    if isinstance(tx, LegacyTransaction):
        # EIP-155: v = 2 × chain_id + 35 + y_parity.
        return rlp.encode([*_fields(tx), rlp.encode_int(2 * tx.chain_id + 35 + signature.y_parity), r, s])
    return _type_byte(tx) + rlp.encode([*_fields(tx), rlp.encode_int(signature.y_parity), r, s])


def attach_signature(unsigned_tx: bytes, signature: Signature) -> bytes:
    """`assemble_raw` of bytes that `decode_unsigned` has accepted: they are not taken apart again."""
    if unsigned_tx[0] >= 0xC0:
        return assemble_raw(unsigned_tx, signature)
    number, encode = rlp.encode_int, rlp.encode
    signed = encode(number(signature.y_parity)) + encode(number(signature.r)) + encode(number(signature.s))
    # EIP-2930, EIP-1559: y_parity, r and s follow the fields that are signed.
    return unsigned_tx[:1] + rlp.encode_list(rlp.list_payload(unsigned_tx[1:]) + signed)


def decode_raw(raw_tx: bytes) -> tuple[UnsignedTransaction, Signature]:
    """The transaction and signature of a raw transaction; strict: `assemble_raw` of the result is `raw_tx`.

    Whether the signature is the sender's is not checked here.

    Raises:
        WalletError: INVALID_REQUEST with `field` and `rule`, or SIGNATURE_INVALID if r, s or y_parity is out of range.
    """
    if len(raw_tx) > MAX_UNSIGNED_BYTES + 80:  # r, s and v with their prefixes
        raise _invalid("raw_tx", f"at most {MAX_UNSIGNED_BYTES + 80} bytes")
    kind, fields = _split(raw_tx, "raw_tx")
    try:
        if len(fields) < 3:
            raise _invalid("raw_tx", "a signature")
        v, r, s = (rlp.decode_int(field) for field in fields[-3:])
        fields = fields[:-3]
        if kind is LegacyTransaction:
            if v < 37:
                raise _invalid("raw_tx", "a chain id in v (EIP-155)")
            chain_id, v = divmod(v - 35, 2)
            fields = [rlp.encode_int(chain_id), *fields]
        tx = _transaction(kind, fields)
    except rlp.RlpError as error:
        raise _invalid("raw_tx", str(error)) from error
    signature = Signature(r, s, v)
    if assemble_raw(tx, signature) != raw_tx:
        raise _invalid("raw_tx", "canonical encoding")
    return tx, signature


def tx_hash(raw_tx: bytes) -> bytes:
    """The transaction's identity: keccak-256 of the raw transaction, 32 bytes."""
    return keccak256(raw_tx)


def _type_byte(tx: Eip1559Transaction | Eip2930Transaction) -> bytes:
    return b"\x02" if isinstance(tx, Eip1559Transaction) else b"\x01"


def _fields(tx: UnsignedTransaction) -> list[rlp.Item]:
    """The signed fields in the order of the transaction's EIP; legacy: the six before v."""
    number = rlp.encode_int
    tail: list[rlp.Item] = [number(tx.gas_limit), tx.to or b"", number(tx.value_wei), tx.data]
    if isinstance(tx, LegacyTransaction):
        return [number(tx.nonce), number(tx.gas_price_wei), *tail]
    head: list[rlp.Item] = [number(tx.chain_id), number(tx.nonce)]
    if isinstance(tx, Eip1559Transaction):
        head += [number(tx.max_priority_fee_per_gas_wei), number(tx.max_fee_per_gas_wei)]
    else:
        head.append(number(tx.gas_price_wei))
    return [*head, *tail, tx.access_list]


def _split(encoded: bytes, field: str) -> tuple[type[UnsignedTransaction], list[rlp.Item]]:
    """The kind of transaction and its top-level fields."""
    kind: type[UnsignedTransaction]
    match encoded[:1]:
        case b"\x02":
            kind, payload = Eip1559Transaction, encoded[1:]
        case b"\x01":
            kind, payload = Eip2930Transaction, encoded[1:]
        case first if first >= b"\xc0":
            kind, payload = LegacyTransaction, encoded
        case _:
            raise _invalid(field, "type 1, 2 or legacy")
    try:
        fields = rlp.decode(payload)
    except rlp.RlpError as error:
        raise _invalid(field, str(error)) from error
    if not isinstance(fields, list):
        raise _invalid(field, "an RLP list")
    return kind, fields


def _transaction(kind: type[UnsignedTransaction], fields: list[rlp.Item]) -> UnsignedTransaction:
    """A transaction from its fields in the order of its dataclass.

    Raises:
        rlp.RlpError, WalletError: a field has the wrong form or is out of range.
    """
    integers = 5 if kind is Eip1559Transaction else 4
    typed = kind is not LegacyTransaction
    if len(fields) != integers + 3 + typed:
        raise rlp.RlpError("a wrong number of fields")
    numbers = [rlp.decode_int(field) for field in fields[:integers]]
    to, value, data = fields[integers : integers + 3]
    if not isinstance(to, bytes) or not isinstance(data, bytes):
        raise rlp.RlpError("to or data is a list")
    parts: list[object] = [*numbers, Address(to) if to else None, rlp.decode_int(value), data]
    if typed:
        parts.append(_access_list(fields[-1]))
    return kind(*parts)  # type: ignore[arg-type]


def _access_list(item: rlp.Item) -> AccessList:
    entries: list[tuple[Address, tuple[bytes, ...]]] = []
    for entry in item if isinstance(item, list) else [item]:
        match entry:
            case [bytes(address), list(keys)] if all(isinstance(key, bytes) for key in keys):
                entries.append((Address(address), tuple(keys)))
            case _:
                raise rlp.RlpError("the access list is not a list of [address, [storage key, …]]")
    return tuple(entries)


def _check(tx: UnsignedTransaction, fee_wei: int) -> None:
    if not 1 <= tx.chain_id <= MAX_CHAIN_ID:
        raise _invalid("chain_id", "1 … 2**63-37 (EIP-2294)")
    if not 0 <= tx.nonce <= MAX_NONCE:
        raise _invalid("nonce", "0 … 2**64-2 (EIP-2681)")
    if not 0 <= fee_wei <= MAX_WEI:
        raise _invalid("max_fee_per_gas_wei" if isinstance(tx, Eip1559Transaction) else "gas_price_wei", "0 … 2**256-1")
    if not 0 <= tx.gas_limit <= MAX_GAS:
        raise _invalid("gas_limit", "0 … 2**64-1")
    if tx.to is not None and len(tx.to) != 20:
        raise _invalid("to", "20 bytes")
    if not 0 <= tx.value_wei <= MAX_WEI:
        raise _invalid("value_wei", "0 … 2**256-1")
    if len(tx.data) > MAX_DATA_BYTES:
        raise WalletError(Reason.INVALID_CALLDATA, "data is too large", field="data", rule="at most 128 KiB")


def _check_access_list(access_list: AccessList) -> None:
    for address, keys in access_list:
        if len(address) != 20 or any(len(key) != 32 for key in keys):
            raise _invalid("access_list", "addresses of 20 and storage keys of 32 bytes (EIP-2930)")


def _invalid(field: str, rule: str) -> WalletError:
    return WalletError(Reason.INVALID_REQUEST, f"{field} breaks its rule", field=field, rule=rule)
