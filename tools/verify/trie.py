"""Inclusion proofs of Ethereum's Merkle-Patricia trie. Source: yellow paper, appendix D."""

from sha3 import keccak_256

from tools.verify import rlp
from tools.verify.refusal import Refused


def proven_value(root: bytes, key: bytes, proof: list[bytes], what: str) -> bytes:
    """The value under `key` in the trie with hash `root` (32 bytes).

    `proof` holds the RLP nodes from root to leaf, as eth_getProof gives them: a node shorter than 32 bytes stands
    inside its parent, and no node is left over.
    """
    path = key.hex()  # one digit per nibble
    reference: rlp.Item = root
    used = 0
    while True:
        if isinstance(reference, bytes):
            if used == len(proof):
                raise Refused(f"{what} ends before the value")
            node_rlp = proof[used]
            if len(reference) != 32 or keccak_256(node_rlp).digest() != reference:
                raise Refused(f"{what}: node {used} is not the one its parent names")
            if used and len(node_rlp) < 32:
                raise Refused(f"{what}: node {used} belongs inside its parent")
            node = rlp.decode_list(node_rlp, f"{what}: node {used}")
            used += 1
        else:
            node = reference
            if len(rlp.encode(node)) >= 32:
                raise Refused(f"{what}: a node inside its parent has 32 bytes or more")
        if len(node) == 17:
            if not path:
                return _value(node[16], used, proof, what)
            reference, path = node[int(path[0], 16)], path[1:]
        elif len(node) == 2:
            is_leaf, shared = _compact(node[0], what)
            if is_leaf:
                if path != shared:
                    raise Refused(f"{what} leads to another key")
                return _value(node[1], used, proof, what)
            if not shared or not path.startswith(shared):
                raise Refused(f"{what} leaves the key's path")
            reference, path = node[1], path[len(shared) :]
        else:
            raise Refused(f"{what}: a node of {len(node)} items")


def _value(item: rlp.Item, used: int, proof: list[bytes], what: str) -> bytes:
    if used != len(proof):
        raise Refused(f"{what} has {len(proof) - used} nodes too many")
    value = rlp.string(item, f"{what}: value")
    if not value:
        raise Refused(f"{what} leads to no value")
    return value


def _compact(item: rlp.Item, what: str) -> tuple[bool, str]:
    """(is it a leaf, path as hex digits) of a hex-prefix encoded path."""
    digits = rlp.string(item, f"{what}: path").hex()
    if digits[:1] in ("1", "3"):
        return digits[0] == "3", digits[1:]
    if digits[:2] in ("00", "20"):
        return digits[0] == "2", digits[2:]
    raise Refused(f"{what}: a path with a bad prefix")
