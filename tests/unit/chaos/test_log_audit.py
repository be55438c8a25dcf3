"""The harness reads the log with code of its own: here it is told what a damaged log looks like."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest

from tools.chaos.log_audit import LogAudit

LINK = "t-1"


class Log:
    """A database that holds a log of `entries` and checkpoints of every size."""

    def __init__(self, bodies: list[bytes]) -> None:
        self.entries: list[dict[str, Any]] = []
        for index, body in enumerate(bodies):
            salt = bytes([index]) * 32
            leaf = json.dumps(
                {"kind": "request", "link_id": LINK, "body": "0x" + sha256(salt + body).hexdigest()}
            ).encode()
            self.entries.append(
                {"index": index, "leaf": leaf, "leaf_hash": sha256(b"\0" + leaf).digest(), "salt": salt, "body": body}
            )
        self.checkpoints = [
            {"tree_size": size, "root_hash": root([one["leaf_hash"] for one in self.entries[:size]])}
            for size in range(1, len(bodies) + 1)
        ]

    async def rows(self, statement: str, first: int = 0, end: int = 0) -> list[dict[str, Any]]:
        return self.entries[first:end] if "evidence.entries" in statement else self.checkpoints


def root(leaf_hashes: list[bytes]) -> bytes:
    """RFC 6962, 2.1, as it is written there."""
    if len(leaf_hashes) == 1:
        return leaf_hashes[0]
    split = 1
    while split * 2 < len(leaf_hashes):
        split *= 2
    return sha256(b"\1" + root(leaf_hashes[:split]) + root(leaf_hashes[split:])).digest()


async def damage(log: Log) -> list[str]:
    audit = LogAudit(log)  # type: ignore[arg-type]
    await audit.read()
    return audit.damaged


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 21])
async def test_a_whole_log_is_consistent(size: int) -> None:
    assert await damage(Log([bytes([number]) for number in range(size)])) == []


async def test_a_changed_body_is_found() -> None:
    log = Log([b"a", b"b", b"c"])
    log.entries[1]["body"] = b"x"
    assert await damage(log) == ["body 1 is not the leaf's"]


async def test_a_changed_leaf_is_found() -> None:
    log = Log([b"a", b"b", b"c"])
    log.entries[1]["leaf_hash"] = bytes(32)
    assert "leaf 1 has another hash" in await damage(log)
    assert "the checkpoint of size 3 has another root" in await damage(log)


async def test_a_missing_entry_is_found() -> None:
    log = Log([b"a", b"b", b"c"])
    del log.entries[1]
    assert "index 1 is missing" in await damage(log)


async def test_a_checkpoint_beyond_the_log_is_found() -> None:
    log = Log([b"a", b"b"])
    log.entries.pop()
    assert await damage(log) == ["a checkpoint of size 2 is beyond the log"]
