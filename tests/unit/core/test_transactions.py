import json
from pathlib import Path
from typing import Any

import coincurve
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core import rlp
from services.core.addresses import Address, address_of_public_key
from services.core.digests import CURVE_ORDER, Signature, recover, recover_public_key, split_signature
from services.core.errors import WalletError
from services.core.transactions import (
    MAX_DATA_BYTES,
    MAX_NONCE,
    Eip1559Transaction,
    Eip2930Transaction,
    LegacyTransaction,
    UnsignedTransaction,
    assemble_raw,
    attach_signature,
    decode_raw,
    decode_unsigned,
    encode_unsigned,
    signing_digest,
    tx_hash,
)

VECTORS = Path(__file__).parents[2] / "vectors"
EIP155 = json.loads((VECTORS / "eip155/example.json").read_text())
EIP1559 = json.loads((VECTORS / "eip1559/transactions.json").read_text())
EIP2930 = json.loads((VECTORS / "eip2930/transactions.json").read_text())

TO = Address(b"\x35" * 20)

nonces = st.integers(0, MAX_NONCE)
wei = st.integers(0, 2**256 - 1)
gas = st.integers(0, 2**64 - 1)
chains = st.integers(1, 2**63 - 37)
addresses = st.binary(min_size=20, max_size=20).map(Address)
destinations = st.none() | addresses
data = st.binary(max_size=300)
access_lists = st.lists(
    st.tuples(addresses, st.lists(st.binary(min_size=32, max_size=32), max_size=3).map(tuple)), max_size=3
).map(tuple)
transactions = st.one_of(
    st.builds(LegacyTransaction, chains, nonces, wei, gas, destinations, wei, data),
    st.builds(Eip2930Transaction, chains, nonces, wei, gas, destinations, wei, data, access_lists),
    st.tuples(wei, wei).flatmap(
        lambda fees: st.builds(
            Eip1559Transaction,
            chains,
            nonces,
            st.just(min(fees)),
            st.just(max(fees)),
            gas,
            destinations,
            wei,
            data,
            access_lists,
        )
    ),
)
signatures = st.builds(Signature, st.integers(1, CURVE_ORDER - 1), st.integers(1, CURVE_ORDER // 2), st.integers(0, 1))


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def sender(tx: UnsignedTransaction, signature: Signature) -> str:
    return "0x" + address_of_public_key(recover_public_key(signing_digest(tx), signature)).hex()


def test_eip155_example() -> None:
    tx = LegacyTransaction(
        EIP155["chain_id"],
        EIP155["nonce"],
        EIP155["gas_price_wei"],
        EIP155["gas_limit"],
        Address(unhex(EIP155["to"])),
        EIP155["value_wei"],
    )
    unsigned_tx = encode_unsigned(tx)
    assert unsigned_tx == unhex(EIP155["signing_data"])
    assert signing_digest(tx) == signing_digest(unsigned_tx) == unhex(EIP155["signing_hash"])
    key = coincurve.PrivateKey(unhex(EIP155["private_key"]))
    made = key.sign_recoverable(signing_digest(tx), hasher=None)
    signature = recover(signing_digest(tx), *split_signature(made[:64]), key.public_key.format())
    assert (signature.r, signature.s) == (int(EIP155["r"]), int(EIP155["s"]))
    assert 35 + 2 * tx.chain_id + signature.y_parity == EIP155["v"]
    assert assemble_raw(tx, signature) == assemble_raw(unsigned_tx, signature) == unhex(EIP155["raw_tx"])
    assert decode_raw(unhex(EIP155["raw_tx"])) == (tx, signature)


@pytest.mark.parametrize("vector", EIP1559["valid"])
def test_eip1559_vectors(vector: dict[str, Any]) -> None:
    tx, signature = decode_raw(unhex(vector["raw_tx"]))
    assert isinstance(tx, Eip1559Transaction)
    assert tx == Eip1559Transaction(
        chain_id=1,
        nonce=vector["nonce"],
        max_priority_fee_per_gas_wei=vector["max_priority_fee_per_gas_wei"],
        max_fee_per_gas_wei=vector["max_fee_per_gas_wei"],
        gas_limit=vector["gas_limit"],
        to=Address(unhex(vector["to"])),
        value_wei=vector["value_wei"],
        access_list=tuple((Address(unhex(address)), tuple(keys)) for address, keys in vector["access_list"]),
    )
    assert sender(tx, signature) == vector["sender"]


@pytest.mark.parametrize("vector", EIP2930["valid"])
def test_eip2930_vectors(vector: dict[str, Any]) -> None:
    tx, signature = decode_raw(unhex(vector["raw_tx"]))
    assert isinstance(tx, Eip2930Transaction)
    assert sender(tx, signature) == vector["sender"]
    if "tx_hash" in vector:
        assert tx_hash(unhex(vector["raw_tx"])) == unhex(vector["tx_hash"])
        assert tx.access_list == ((Address(unhex("a95e7baea6a6c7c4c2dfeb977efac326af552d87")), (b"\xff" * 32,)),)


@pytest.mark.parametrize("name", [*EIP1559["invalid"], *EIP2930["invalid"]])
def test_official_invalid_transactions_are_refused(name: str) -> None:
    with pytest.raises(WalletError, match="INVALID_REQUEST"):
        decode_raw(unhex((EIP1559["invalid"] | EIP2930["invalid"])[name]))


@given(transactions)
def test_unsigned_transactions_round_trip(tx: UnsignedTransaction) -> None:
    assert decode_unsigned(encode_unsigned(tx)) == tx


@given(transactions, signatures)
def test_raw_transactions_round_trip(tx: UnsignedTransaction, signature: Signature) -> None:
    assert decode_raw(assemble_raw(tx, signature)) == (tx, signature)
    assert attach_signature(encode_unsigned(tx), signature) == assemble_raw(tx, signature)


@given(transactions, st.data())
def test_changed_bytes_are_another_transaction_or_refused(tx: UnsignedTransaction, draw: st.DataObject) -> None:
    unsigned_tx = bytearray(encode_unsigned(tx))
    at = draw.draw(st.integers(0, len(unsigned_tx) - 1))
    unsigned_tx[at] ^= draw.draw(st.integers(1, 255))
    try:
        changed = decode_unsigned(bytes(unsigned_tx))
    except WalletError:
        return
    assert changed != tx
    assert encode_unsigned(changed) == unsigned_tx


@given(st.sampled_from([b"", b"\x01", b"\x02", b"\xc9"]), st.binary(max_size=200))
def test_noise_is_refused_with_a_reason(prefix: bytes, noise: bytes) -> None:
    for decode in (decode_unsigned, decode_raw):
        with pytest.raises(WalletError) as refusal:
            decode(prefix + noise)
        assert refusal.value.details["rule"]


def test_pre_eip155_and_later_types_are_refused() -> None:
    six_fields = rlp.encode([b"\x09", b"\x01", b"\x52\x08", TO, b"", b""])
    unprotected = rlp.encode([b"\x09", b"\x01", b"\x52\x08", TO, b"", b"", b"\x1b", b"\x01", b"\x01"])
    chain_zero = rlp.encode([b"\x09", b"\x01", b"\x52\x08", TO, b"", b"", b"", b"", b""])
    body = encode_unsigned(Eip1559Transaction(1, 0, 0, 0, 0, TO, 0))[1:]
    for unsigned_tx in (six_fields, unprotected, chain_zero, b"\x03" + body, b"\x04" + body, b"\x00" + body, b""):
        with pytest.raises(WalletError, match="INVALID_REQUEST"):
            decode_unsigned(unsigned_tx)
    for decode in (decode_unsigned, decode_raw):
        with pytest.raises(WalletError, match="EIP-155"):
            decode(unprotected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chain_id", 0),
        ("chain_id", 2**63),
        ("nonce", -1),
        ("nonce", 2**64 - 1),
        ("max_fee_per_gas_wei", 2**256),
        ("max_priority_fee_per_gas_wei", 11),
        ("max_priority_fee_per_gas_wei", -1),
        ("gas_limit", 2**64),
        ("to", b"\x35" * 19),
        ("to", b""),
        ("value_wei", -1),
        ("value_wei", 2**256),
        ("data", bytes(MAX_DATA_BYTES + 1)),
        ("access_list", ((b"\x35" * 19, ()),)),
        ("access_list", ((TO, (bytes(31),)),)),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: Any) -> None:
    fields = {
        "chain_id": 1,
        "nonce": 0,
        "max_priority_fee_per_gas_wei": 1,
        "max_fee_per_gas_wei": 10,
        "gas_limit": 21000,
        "to": TO,
        "value_wei": 1,
    }
    with pytest.raises(WalletError) as refusal:
        Eip1559Transaction(**{**fields, field: value})
    assert refusal.value.details["field"] == field


def test_sizes_are_bounded() -> None:
    largest = Eip1559Transaction(1, 0, 0, 0, 0, None, 0, bytes(MAX_DATA_BYTES))
    assert decode_unsigned(encode_unsigned(largest)) == largest
    many_keys = Eip1559Transaction(1, 0, 0, 0, 0, TO, 0, b"", ((TO, (bytes(32),) * 6000),))
    with pytest.raises(WalletError, match="unsigned_tx"):
        encode_unsigned(many_keys)
    with pytest.raises(WalletError, match="nested too deep"):
        decode_unsigned(b"\x02" + nested(40_000))


def nested(levels: int) -> bytes:
    item = b"\xc0"
    for _ in range(levels):
        item = (bytes([0xC0 + len(item)]) if len(item) < 56 else long_list_prefix(len(item))) + item
        if len(item) > 100_000:
            break
    return item


def long_list_prefix(length: int) -> bytes:
    size = rlp.encode_int(length)
    return bytes([0xF7 + len(size)]) + size


def test_digests_are_of_the_bytes_that_are_signed() -> None:
    tx = Eip1559Transaction(1, 0, 0, 0, 0, TO, 0)
    key = coincurve.PrivateKey(b"\x46" * 32)
    signature = recover(
        signing_digest(tx),
        *split_signature(key.sign_recoverable(signing_digest(tx), hasher=None)[:64]),
        key.public_key.format(),
    )
    decoded, found = decode_raw(assemble_raw(tx, signature))
    assert recover_public_key(signing_digest(decoded), found) == key.public_key.format()
