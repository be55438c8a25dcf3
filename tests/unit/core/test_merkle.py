import json
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.entries import leaf_hash
from services.core.errors import WalletError
from services.core.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    root_hash,
    verify_consistency,
    verify_inclusion,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "rfc6962"
TREE = json.loads((VECTORS / "tree.json").read_bytes())
PATHS = json.loads((VECTORS / "paths.json").read_bytes())
HASHES = [sha256(bytes([number % 256, number // 256])).digest() for number in range(600)]


def naive_root(hashes):
    """MTH of RFC 6962 §2.1, word for word."""
    if not hashes:
        return sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return sha256(b"\x01" + naive_root(hashes[:split]) + naive_root(hashes[split:])).digest()


def naive_subtree(level, index):
    return naive_root(HASHES[index << level : (index + 1) << level])


def grown(size):
    frontier, subtrees = Frontier(), {}
    for leaf in HASHES[:size]:
        for level, index, subtree in frontier.append(leaf):
            subtrees[level, index] = subtree
    return frontier, subtrees


def test_known_tree():
    frontier, subtrees = Frontier(), {}
    assert frontier.root().hex() == TREE["roots"][0]
    for size, leaf in enumerate(TREE["leaves"], 1):
        for level, index, subtree in frontier.append(leaf_hash(bytes.fromhex(leaf))):
            subtrees[level, index] = subtree
        assert frontier.root().hex() == TREE["roots"][size]
    expected = {(level, i): h for level, row in enumerate(TREE["subtrees"]) for i, h in enumerate(row)}
    assert {place: subtree.hex() for place, subtree in subtrees.items()} == expected


def test_known_paths():
    size = PATHS["size"]
    named = {name: naive_subtree(*place) for name, place in PATHS["nodes"].items()}
    named["l"] = naive_root(HASHES[4:size])
    for index, path in PATHS["inclusion"].items():
        assert inclusion_proof(int(index), size, naive_subtree) == [named[name] for name in path]
    for old_size, path in PATHS["consistency"].items():
        assert consistency_proof(int(old_size), size, naive_subtree) == [named[name] for name in path]


@given(st.integers(0, 600))
def test_the_frontier_agrees_with_the_definition(size):
    frontier, subtrees = grown(size)
    root = naive_root(HASHES[:size])
    assert frontier.size == size
    assert frontier.root() == root
    assert root_hash(size, lambda *place: subtrees[place]) == root
    assert all(subtree == naive_subtree(*place) for place, subtree in list(subtrees.items())[-20:])
    restored = Frontier.from_bytes(frontier.to_bytes())
    restored.append(HASHES[0])
    assert restored.root() == naive_root([*HASHES[:size], HASHES[0]])
    assert frontier.size == size


@given(st.data())
def test_inclusion(data):
    size = data.draw(st.integers(1, 600))
    index = data.draw(st.integers(0, size - 1))
    _, subtrees = grown(size)
    root = naive_root(HASHES[:size])
    proof = inclusion_proof(index, size, lambda *place: subtrees[place])
    verify_inclusion(index, size, HASHES[index], proof, root)
    others = [(index, size, HASHES[index], [*proof, root], root), (index, size, EMPTY_ROOT, proof, root)]
    others += [(index, size, HASHES[index], proof, EMPTY_ROOT), (index, 4 * size, HASHES[index], proof, root)]
    if proof:
        others += [(index, size, HASHES[index], proof[:-1], root), (index, size, HASHES[index], proof[1:], root)]
        others += [(index ^ 1, size, HASHES[index], proof, root)]
        place = data.draw(st.integers(0, len(proof) - 1))
        others += [(index, size, HASHES[index], [*proof[:place], EMPTY_ROOT, *proof[place + 1 :]], root)]
    for other in others:
        with pytest.raises(WalletError):
            verify_inclusion(*other)


@given(st.data())
def test_consistency(data):
    size = data.draw(st.integers(0, 600))
    old_size = data.draw(st.integers(0, size))
    _, subtrees = grown(size)
    old_root, root = naive_root(HASHES[:old_size]), naive_root(HASHES[:size])
    proof = consistency_proof(old_size, size, lambda *place: subtrees[place])
    verify_consistency(old_size, size, old_root, root, proof)
    others = [(old_size, size, HASHES[1], root, proof), (old_size, size, old_root, root, [*proof, root])]
    if 0 < old_size < size:
        others += [(old_size, size, old_root, HASHES[1], proof), (old_size, size, old_root, root, proof[:-1])]
        place = data.draw(st.integers(0, len(proof) - 1))
        others += [(old_size, size, old_root, root, [*proof[:place], EMPTY_ROOT, *proof[place + 1 :]])]
    for other in others:
        with pytest.raises(WalletError):
            verify_consistency(*other)


@pytest.mark.parametrize(
    "data", [b"", bytes(7), (3).to_bytes(8, "big") + bytes(32), bytes(8) + bytes(32), bytes(40)[:39]]
)
def test_a_frontier_of_other_bytes_is_refused(data):
    with pytest.raises(WalletError, match="frontier"):
        Frontier.from_bytes(data)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5)])
def test_no_proof_outside_the_tree(index, size):
    with pytest.raises(WalletError, match="index"):
        inclusion_proof(index, size, naive_subtree)
    with pytest.raises(WalletError, match="index"):
        verify_inclusion(index, size, HASHES[0], [], HASHES[0])
    with pytest.raises(WalletError, match="old_size"):
        consistency_proof(size + 1, size, naive_subtree)
    with pytest.raises(WalletError, match="old_size"):
        verify_consistency(size + 1, size, HASHES[0], HASHES[0], [])
