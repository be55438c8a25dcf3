import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core import rlp
from services.core.digests import keccak256
from services.core.tries import EMPTY_ROOT, build, verify_proof

BLOCKS = json.loads((Path(__file__).parents[2] / "vectors/eip2718/trans_type_blocks.json").read_text())

# 1-byte values make embedded nodes, long ones make none.
value_lists = st.lists(
    st.binary(min_size=1, max_size=3) | st.binary(min_size=33, max_size=200), min_size=1, max_size=300
)


def typed_items(block: dict[str, Any]) -> list[bytes]:
    _, items, _ = rlp.decode(bytes.fromhex(block["rlp"][2:]))  # type: ignore[misc]
    return [item if isinstance(item, bytes) else rlp.encode(item) for item in items]


def test_empty_trie() -> None:
    assert build([]).root == EMPTY_ROOT == keccak256(rlp.encode(b""))
    with pytest.raises(IndexError):
        build([]).proof(0)


@pytest.mark.parametrize("block", BLOCKS)
def test_official_transaction_roots(block: dict[str, Any]) -> None:
    values = typed_items(block)
    trie = build(values)
    assert "0x" + trie.root.hex() == block["transactionsTrie"]
    for index, value in enumerate(values):
        assert verify_proof(trie.root, index, value, trie.proof(index))


@settings(max_examples=40, deadline=None)
@given(value_lists)
def test_every_value_is_proven_at_its_index_only(values: list[bytes]) -> None:
    trie = build(values)
    for index, value in enumerate(values):
        proof = trie.proof(index)
        assert verify_proof(trie.root, index, value, proof)
        assert not verify_proof(trie.root, index, value + b"\x00", proof)
        assert not verify_proof(trie.root, len(values), value, proof)
        # eth_getProof's form: the root, then nodes of 32 bytes and more; a smaller one is inside its parent.
        assert all(len(node) >= 32 for node in proof[1:])
    with pytest.raises(IndexError):
        trie.proof(len(values))
    with pytest.raises(IndexError):
        trie.proof(-1)


@settings(max_examples=100, deadline=None)
@given(value_lists, st.data())
def test_a_changed_proof_is_refused(values: list[bytes], draw: st.DataObject) -> None:
    trie = build(values)
    index = draw.draw(st.integers(0, len(values) - 1))
    proof, value = trie.proof(index), values[index]
    assert not verify_proof(trie.root, index, value, [*proof, proof[-1]])
    assert not verify_proof(trie.root, index, value, [*proof, b"\x80"])
    assert not verify_proof(trie.root, index, value, proof[:-1])
    assert not verify_proof(keccak256(trie.root), index, value, proof)
    at = draw.draw(st.integers(0, len(proof) - 1))
    node = bytearray(proof[at])
    node[draw.draw(st.integers(0, len(node) - 1))] ^= draw.draw(st.integers(1, 255))
    assert not verify_proof(trie.root, index, value, [*proof[:at], bytes(node), *proof[at + 1 :]])


@pytest.mark.parametrize("size", range(1, 60))
def test_nodes_around_32_bytes(size: int) -> None:
    values = [bytes([index]) * size for index in range(20)]
    trie = build(values)
    for index, value in enumerate(values):
        proof = trie.proof(index)
        assert verify_proof(trie.root, index, value, proof)
        assert all(len(node) >= 32 for node in proof[1:])


def hostile_root(node: Any) -> tuple[bytes, list[bytes]]:
    encoded = rlp.encode(node)
    return keccak256(encoded), [encoded]


@pytest.mark.parametrize(
    "node",
    [
        b"",
        [],
        [b"", b"value"],
        [b"\x00", [b"\x20\x80", b"value"]],  # an extension of no nibbles before the right leaf
        [b"\x40", b"value"],  # no such prefix
        [b"\x21\x80", b"value"],  # padding that is not zero
        [b"\x20\x80", [b"value"]],  # a leaf whose value is a list
        [b""] * 17,
        [b"\x20\x80", b"value", b""],
    ],
)
def test_malformed_nodes_prove_nothing(node: Any) -> None:
    root, proof = hostile_root(node)
    assert not verify_proof(root, 0, b"value", proof)
    assert not verify_proof(root, 0, b"", proof)


def test_a_list_in_place_of_the_value_proves_nothing() -> None:
    # The value's RLP, embedded as a list, is not the value.
    root, proof = hostile_root([b"\x20\x80", [b"a", b"b"]])
    assert not verify_proof(root, 0, rlp.encode([b"a", b"b"]), proof)
