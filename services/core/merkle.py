"""The Merkle tree of RFC 6962: a frontier to append to, proofs over stored subtrees, and their verification.

A *full subtree* is named (level, index): its root covers the leaves [index · 2**level, (index + 1) · 2**level). It
never changes once those leaves are there, so proofs are made of full subtrees alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import sha256

from services.core.errors import refuse

HASH_SIZE = 32
EMPTY_ROOT = sha256(b"").digest()

# Answers the hash of the full subtree (level, index); what it raises for an unknown one reaches the caller.
SubtreeHash = Callable[[int, int], bytes]


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right). Source: RFC 6962 §2.1."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: the roots of the full subtrees that its leaves split into, largest first."""

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        """`hashes`: one per set bit of `size`, the largest subtree first.

        Raises:
            WalletError: INVALID_REQUEST if they do not fit `size`.
        """
        self._size = size
        self._hashes = list(hashes)
        if size < 0 or len(self._hashes) != size.bit_count():
            refuse("frontier", "has one hash for each set bit of its size")
        if any(len(subtree) != HASH_SIZE for subtree in self._hashes):
            refuse("frontier", "has hashes of 32 bytes")

    @property
    def size(self) -> int:
        return self._size

    def copy(self) -> Frontier:
        return Frontier(self._size, self._hashes)

    def append(self, leaf_hash: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf; answer the full subtrees that it completes as (level, index, hash), the leaf itself first."""
        size = self._size
        subtree = leaf_hash
        completed = [(0, size, subtree)]
        level = 0
        while size >> level & 1:
            subtree = sha256(b"\x01" + self._hashes.pop() + subtree).digest()
            level += 1
            completed.append((level, size >> level, subtree))
        self._hashes.append(subtree)
        self._size = size + 1
        return completed

    def root(self) -> bytes:
        """The tree's root hash; SHA-256 of nothing for an empty tree."""
        return _fold(self._hashes) if self._hashes else EMPTY_ROOT

    def to_bytes(self) -> bytes:
        """Eight bytes of size, big-endian, then the hashes, largest subtree first."""
        return self._size.to_bytes(8, "big") + b"".join(self._hashes)

    @classmethod
    def from_bytes(cls, data: bytes) -> Frontier:
        """Raises WalletError INVALID_REQUEST unless `data` is what `to_bytes` wrote."""
        if len(data) < 8:
            refuse("frontier", "begins with eight bytes of size")
        hashes = [data[start : start + HASH_SIZE] for start in range(8, len(data), HASH_SIZE)]
        return cls(int.from_bytes(data[:8], "big"), hashes)


def root_hash(size: int, subtree_hash: SubtreeHash) -> bytes:
    """The root of the first `size` leaves."""
    return _range_hash(0, size, subtree_hash) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, subtree_hash: SubtreeHash) -> list[bytes]:
    """PATH(index, D[size]), leaf to root. Source: RFC 6962 §2.1.1.

    Raises:
        WalletError: INVALID_REQUEST unless 0 ≤ index < size.
    """
    if not 0 <= index < size:
        refuse("index", "is at least 0 and below the tree's size")
    path = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(_range_hash(middle, end, subtree_hash))
            end = middle
        else:
            path.append(_range_hash(begin, middle, subtree_hash))
            begin = middle
    return path[::-1]


def consistency_proof(old_size: int, size: int, subtree_hash: SubtreeHash) -> list[bytes]:
    """PROOF(old_size, D[size]); empty for equal sizes and from the empty tree. Source: RFC 6962 §2.1.2.

    Raises:
        WalletError: INVALID_REQUEST unless 0 ≤ old_size ≤ size.
    """
    if not 0 <= old_size <= size:
        refuse("old_size", "is at least 0 and at most the tree's size")
    if old_size in (0, size):
        return []
    path = []
    begin, end = 0, size
    while end != old_size:
        middle = begin + _split(end - begin)
        if old_size <= middle:
            path.append(_range_hash(middle, end, subtree_hash))
            end = middle
        else:
            path.append(_range_hash(begin, middle, subtree_hash))
            begin = middle
    if begin:  # SUBPROOF with b = false: the verifier does not know this subtree's root
        path.append(_range_hash(begin, end, subtree_hash))
    return path[::-1]


def verify_inclusion(index: int, size: int, leaf_hash: bytes, proof: list[bytes], root: bytes) -> None:
    """Source: RFC 9162 §2.1.3.2.

    Raises:
        WalletError: INVALID_REQUEST if `proof` does not lead from the leaf to `root`.
    """
    if not 0 <= index < size:
        refuse("index", "is at least 0 and below the tree's size")
    node, last, subtree = index, size - 1, leaf_hash
    for sibling in proof:
        if last == 0:
            refuse("inclusion_proof", "has no hash too many")
        if node & 1 or node == last:
            subtree = node_hash(sibling, subtree)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            subtree = node_hash(subtree, sibling)
        node, last = node >> 1, last >> 1
    if last or subtree != root:
        refuse("inclusion_proof", "leads from the leaf to the root")


def verify_consistency(old_size: int, size: int, old_root: bytes, root: bytes, proof: list[bytes]) -> None:
    """Source: RFC 9162 §2.1.4.2; from the empty tree every tree grows, by an empty proof.

    Raises:
        WalletError: INVALID_REQUEST if `proof` does not show that the tree of `root` extends that of `old_root`.
    """
    if not 0 <= old_size <= size:
        refuse("old_size", "is at least 0 and at most the tree's size")
    if old_size in (0, size):
        if proof or (old_size == size and old_root != root) or (old_size == 0 and old_root != EMPTY_ROOT):
            refuse("consistency_proof", "is empty between equal trees and from the empty one")
        return
    node, last = old_size - 1, size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    # A complete old tree is a subtree of the new one: its root is known and not part of the proof.
    path = proof if node else [old_root, *proof]
    if not path:
        refuse("consistency_proof", "is not empty between different sizes")
    old_subtree = subtree = path[0]
    for sibling in path[1:]:
        if last == 0:
            refuse("consistency_proof", "has no hash too many")
        if node & 1 or node == last:
            old_subtree = node_hash(sibling, old_subtree)
            subtree = node_hash(sibling, subtree)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            subtree = node_hash(subtree, sibling)
        node, last = node >> 1, last >> 1
    if last or old_subtree != old_root or subtree != root:
        refuse("consistency_proof", "leads to both roots")


def _split(width: int) -> int:
    """The largest power of two below `width` (≥ 2). Source: RFC 6962 §2.1, k."""
    return 1 << (width - 1).bit_length() - 1


def _range_hash(begin: int, end: int, subtree_hash: SubtreeHash) -> bytes:
    """MTH(D[begin:end]) for a range of the tree's own splits: `begin` is a multiple of every full subtree within."""
    hashes = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        hashes.append(subtree_hash(level, begin >> level))
        begin += 1 << level
    return _fold(hashes)


def _fold(hashes: list[bytes]) -> bytes:
    """The root over full subtrees, largest first: the smallest two are joined first."""
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root
