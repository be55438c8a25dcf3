"""Merkle trees with RFC 6962 hashing: the evidence log's and, alike, CometBFT's."""

from collections.abc import Sequence
from hashlib import sha256

from tools.verify.refusal import Refused


def leaf_hash(leaf: bytes) -> bytes:
    return sha256(b"\0" + leaf).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Root of the tree over whole `leaves`. Source: RFC 6962, 2.1."""
    if len(leaves) == 0:
        return sha256().digest()
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return sha256(b"\1" + root_of(leaves[:split]) + root_of(leaves[split:])).digest()


def root_by_proof(leaf: bytes, index: int, tree_size: int, proof: list[bytes], what: str) -> bytes:
    """Root of the tree of `tree_size` leaves that has the leaf hash `leaf` at `index`, by its inclusion proof.

    Source: RFC 9162, 2.1.3.2 (the hashing is RFC 6962's).
    """
    if index >= tree_size:
        raise Refused(f"{what}: index {index} is outside a tree of {tree_size} leaves")
    node, last, current = index, tree_size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise Refused(f"{what}: the proof is too long")
        if node & 1 or node == last:
            current = sha256(b"\1" + sibling + current).digest()
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            current = sha256(b"\1" + current + sibling).digest()
        node, last = node >> 1, last >> 1
    if last:
        raise Refused(f"{what}: the proof is too short")
    return current
