"""The log as an auditor with the database reads it: each leaf, the tree over them, each checkpoint and signature."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any, NamedTuple

from services.core.transactions import decode_raw
from services.runtime.db import Database
from tools.chaos.policy_audit import PolicyAudit

_PAGE = 5_000


class NonceKey(NamedTuple):
    chain_id: int
    sender: str  # 0x-hex
    nonce: int


class LogAudit:
    """`await read()`, then what it found."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.entries = 0
        self.damaged: list[str] = []
        # Who was signed for under a nonce: links that transfer, and links that supersede.
        self.signed: defaultdict[NonceKey, set[str]] = defaultdict(set)
        self.superseding: defaultdict[NonceKey, set[str]] = defaultdict(set)
        self.bumped_links: set[str] = set()
        self.revocations = 0
        self.policy = PolicyAudit()

    async def read(self) -> None:
        checkpoints = {
            row["tree_size"]: row["root_hash"]
            for row in await self._database.rows("SELECT tree_size, root_hash FROM evidence.checkpoints")
        }
        tree = _Tree()
        if checkpoints.pop(0, tree.root()) != tree.root():
            self.damaged.append("the checkpoint of size 0 has another root")
        links: dict[str, tuple[str, bool]] = {}  # link → (sender, supersedes something)
        signatures: dict[str, int] = defaultdict(int)
        async for row in self._rows():
            if row["index"] != self.entries:
                self.damaged.append(f"index {self.entries} is missing")
                return
            self.entries += 1
            leaf, body = json.loads(row["leaf"]), row["body"]
            if sha256(b"\0" + row["leaf"]).digest() != row["leaf_hash"]:
                self.damaged.append(f"leaf {row['index']} has another hash")
            tree.add(row["leaf_hash"])
            root = checkpoints.pop(self.entries, None)
            if root is not None and root != tree.root():
                self.damaged.append(f"the checkpoint of size {self.entries} has another root")
            if body is None or leaf["body"] != "0x" + sha256(row["salt"] + body).hexdigest():
                self.damaged.append(f"body {row['index']} is not the leaf's")
                continue
            match leaf["kind"]:
                case "intent":
                    intent = json.loads(body)
                    links[leaf["link_id"]] = sys.intern(intent["from"]), "supersedes" in intent
                    self.policy.note_intent(leaf["link_id"], intent["policy"])
                case "signature":
                    self._note_signature(leaf["link_id"], json.loads(body), links, signatures)
                case "revocation":
                    self.revocations += 1
                case "policy":
                    self.policy.note_administrative(leaf["link_id"], row["leaf_hash"], json.loads(body))
        self.damaged += [f"a checkpoint of size {size} is beyond the log" for size in checkpoints]

    def _note_signature(
        self, link_id: str, signature: dict[str, Any], links: dict[str, tuple[str, bool]], count: dict[str, int]
    ) -> None:
        if signature["status"] != "success":
            return
        tx, _ = decode_raw(bytes.fromhex(signature["raw_tx"][2:]))
        sender, supersedes = links[link_id]
        key = NonceKey(tx.chain_id, sender, tx.nonce)
        (self.superseding if supersedes else self.signed)[key].add(link_id)
        count[link_id] += 1
        if count[link_id] > 1:
            self.bumped_links.add(link_id)

    async def _rows(self) -> AsyncIterator[Any]:
        first = 0
        while True:
            page = await self._database.rows(
                "SELECT e.index, e.leaf, e.leaf_hash, b.salt, b.body FROM evidence.entries e "
                "LEFT JOIN evidence.bodies b ON b.index = e.index "
                "WHERE e.index >= $1 AND e.index < $2 ORDER BY e.index",
                first,
                first + _PAGE,
            )
            for row in page:
                yield row
            if len(page) < _PAGE:
                return
            first += _PAGE


class _Tree:
    """RFC 6962's tree as its full subtrees, so that its root is known at each size. Not the services' own code."""

    def __init__(self) -> None:
        self._subtrees: list[tuple[int, bytes]] = []  # (leaves, root), the largest first

    def add(self, leaf_hash: bytes) -> None:
        size, root = 1, leaf_hash
        while self._subtrees and self._subtrees[-1][0] == size:
            _, left = self._subtrees.pop()
            size, root = size * 2, sha256(b"\1" + left + root).digest()
        self._subtrees.append((size, root))

    def root(self) -> bytes:
        if not self._subtrees:
            return sha256().digest()
        root = self._subtrees[-1][1]
        for _, left in reversed(self._subtrees[:-1]):
            root = sha256(b"\1" + left + root).digest()
        return root
