"""The Merkle-Patricia tries over a block's transactions and receipts, and proofs against their roots.

Keys are rlp(index). No such key is a prefix of another, so a branch never carries a value and none is modelled.
Source: Yellow Paper, appendix D, and "Holistic Validity" (4.3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from services.core import rlp
from services.core.digests import keccak256

# keccak-256 of the RLP of the empty byte string.
EMPTY_ROOT = bytes.fromhex("56e81f171bcc55a6ff8345e692c0f86e5b48e01b996cadc001622fb5e363b421")

Nibbles: TypeAlias = bytes  # one nibble (0 … 15) a byte


@dataclass(frozen=True, slots=True)
class _Node:
    item: list[rlp.Item]
    encoded: bytes
    skipped: int  # nibbles of the key that this node itself consumes before a child is chosen
    children: dict[int, _Node] | _Node | None  # branch by nibble, extension, leaf


class OrderedTrie:
    """The trie over values in their order; build it once per block with `build`."""

    def __init__(self, top: _Node | None, size: int) -> None:
        self._top = top
        self._size = size
        self.root: bytes = keccak256(top.encoded) if top else EMPTY_ROOT

    def proof(self, index: int) -> list[bytes]:
        """The RLP nodes from root to the value at `index`, as eth_getProof gives them.

        A node below 32 bytes is embedded in its parent and is no element of its own.

        Raises:
            IndexError: there is no value at `index`.
        """
        if not 0 <= index < self._size or self._top is None:
            raise IndexError(index)
        key = _nibbles(rlp.encode(rlp.encode_int(index)))
        node, position, proof = self._top, 0, [self._top.encoded]
        while node.children is not None:
            position += node.skipped
            if isinstance(node.children, dict):
                node = node.children[key[position]]
                position += 1
            else:
                node = node.children
            if len(node.encoded) >= 32:
                proof.append(node.encoded)
        return proof


def build(values: list[bytes]) -> OrderedTrie:
    """The trie of `values` (raw transactions, or receipts in their EIP-2718 form) in block order."""
    pairs = sorted((_nibbles(rlp.encode(rlp.encode_int(index))), value) for index, value in enumerate(values))
    return OrderedTrie(_subtrie(pairs, 0, len(pairs), 0) if pairs else None, len(values))


def verify_proof(root: bytes, index: int, value: bytes, proof: list[bytes]) -> bool:
    """Whether `proof` is exactly the path from `root` to `value` at `index`: no node missing, none more."""
    key = _nibbles(rlp.encode(rlp.encode_int(index)))
    remaining = iter(proof)
    reference: rlp.Item = root
    try:
        while True:
            # A reference is a node's hash, or a node below 32 bytes itself.
            if isinstance(reference, bytes):
                encoded = next(remaining, None)
                if encoded is None or keccak256(encoded) != reference:
                    return False
                node = rlp.decode(encoded)
            else:
                node = reference
            match node:
                case [bytes(path), bytes() | list() as target] if path:
                    nibbles, is_leaf = _decode_path(path)
                    if is_leaf:
                        return nibbles == key and target == value and next(remaining, None) is None
                    if not nibbles or not key.startswith(nibbles):
                        return False
                    key, reference = key[len(nibbles) :], target
                case [*references] if len(references) == 17 and key:
                    reference, key = references[key[0]], key[1:]
                case _:
                    return False
    except rlp.RlpError:
        return False


def _subtrie(pairs: list[tuple[Nibbles, bytes]], start: int, end: int, depth: int) -> _Node:
    """The node over the sorted `pairs[start:end]`, which share their first `depth` nibbles."""
    first, value = pairs[start]
    if end - start == 1:
        return _node([_encode_path(first[depth:], is_leaf=True), value], len(first) - depth, None)
    last = pairs[end - 1][0]
    # Sorted: what the first and the last share, all share. Keys are prefix-free, so they differ before either ends.
    shared = depth
    while first[shared] == last[shared]:
        shared += 1
    children: dict[int, _Node] = {}
    while start < end:
        nibble, stop = pairs[start][0][shared], start + 1
        while stop < end and pairs[stop][0][shared] == nibble:
            stop += 1
        children[nibble] = _subtrie(pairs, start, stop, shared + 1)
        start = stop
    references = [_reference(children[nibble]) if nibble in children else b"" for nibble in range(16)]
    branch = _node([*references, b""], 0, children)
    if shared == depth:
        return branch
    return _node([_encode_path(first[depth:shared], is_leaf=False), _reference(branch)], shared - depth, branch)


def _node(item: list[rlp.Item], skipped: int, children: dict[int, _Node] | _Node | None) -> _Node:
    return _Node(item, rlp.encode(item), skipped, children)


def _reference(node: _Node) -> rlp.Item:
    return node.item if len(node.encoded) < 32 else keccak256(node.encoded)


def _nibbles(key: bytes) -> Nibbles:
    return bytes(nibble for byte in key for nibble in (byte >> 4, byte & 15))


def _encode_path(nibbles: Nibbles, *, is_leaf: bool) -> bytes:
    """Hex-prefix encoding. Source: Yellow Paper, appendix C."""
    flag = 2 if is_leaf else 0
    padded = bytes([flag + 1]) + nibbles if len(nibbles) % 2 else bytes([flag, 0]) + nibbles
    return bytes(padded[at] << 4 | padded[at + 1] for at in range(0, len(padded), 2))


def _decode_path(path: bytes) -> tuple[Nibbles, bool]:
    """Nibbles, and whether the path is a leaf's. Raises: rlp.RlpError if it is no hex-prefix encoding."""
    nibbles = _nibbles(path)
    if nibbles[0] > 3 or (nibbles[0] % 2 == 0 and nibbles[1] != 0):
        raise rlp.RlpError("a trie path has a wrong prefix")
    return nibbles[1 if nibbles[0] % 2 else 2 :], nibbles[0] >= 2
