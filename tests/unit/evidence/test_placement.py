"""Entries are placed one by one; what is refused leaves no trace in the tree, and what is stored is replayed."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest

from services.core.errors import Reason, WalletError
from services.evidence import placement as placement_module
from services.evidence.links import Appended, Link, replay
from services.evidence.placement import Append, Placement, SameId
from services.evidence.store import StoredEntry
from services.evidence.tree import TreeEdge
from tests.unit.verify import forge

NOW = forge.START + timedelta(seconds=10)


def append(link_id: str, entry_id: str, body: object, kind: str = "key", trace_id: str = forge.TRACE_ID) -> Append:
    encoded = body if isinstance(body, bytes) else json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return Append(link_id, entry_id, kind, trace_id, "b7ad6b7169203331", encoded)


class Log:
    """The sequencer's memory without its database."""

    def __init__(self) -> None:
        self.edge = TreeEdge()
        self.links: dict[str, Link] = {}
        self.stored: list[StoredEntry] = []

    def place(self, *appends: Append, at: datetime = NOW) -> list[Any]:
        for one in appends:
            self.links.setdefault(one.link_id, Link())
        placing = Placement(self.edge, at, self.links, nodes_required=2)
        outcomes = [placing.place(one) for one in appends]
        self.stored += [
            StoredEntry(e.index, e.link_id, e.step, e.entry_id, e.leaf, e.leaf_hash, e.salt, e.body)
            for e in placing.entries
        ]
        return outcomes


def test_a_link_that_was_replayed_stands_where_the_one_in_memory_stands() -> None:
    log = Log()
    for number, draft in enumerate(forge.plain_link()):
        at = forge.START + timedelta(seconds=draft.at)
        (outcome,) = log.place(append("t-1", f"e:{number}", draft.body, draft.kind), at=at)
        assert isinstance(outcome, Appended), outcome
        again = replay(log.stored)
        assert again.head == log.links["t-1"].head
        assert again.entries == log.links["t-1"].entries
    assert again.state == "FINALIZED"


def test_leaves_chain_and_commit_to_salted_bodies_of_their_own() -> None:
    log = Log()
    first, second = log.place(append("a", "k:1", {"n": 1}), append("a", "k:2", {"n": 1}))
    one, two = log.stored
    leaves = [json.loads(entry.leaf) for entry in log.stored]
    assert leaves[1]["prev"] == "0x" + first.leaf_hash.hex() == "0x" + sha256(b"\0" + one.leaf).hexdigest()
    assert leaves[0]["body"] != leaves[1]["body"]
    assert (first.index, first.step, second.index, second.step) == (0, 0, 1, 1)
    assert one.salt != two.salt


@pytest.mark.parametrize(
    ("bad", "reason", "field"),
    [
        (append("a b", "k:1", {}), Reason.INVALID_REQUEST, "link_id"),
        (append("a", "", {}), Reason.INVALID_REQUEST, "entry_id"),
        (append("a", "k\n", {}), Reason.INVALID_REQUEST, "entry_id"),
        (append("a", "k:1", {}, kind="keys"), Reason.INVALID_REQUEST, "kind"),
        (append("a", "k:1", b"{}\n"), Reason.INVALID_REQUEST, "body"),
        (append("a", "k:1", b"0" * (2**20 + 1)), Reason.PAYLOAD_TOO_LARGE, "body"),
        (append("a", "k:1", {}, trace_id="1"), Reason.INVALID_REQUEST, "trace_id"),
        (
            append("a", "k:1", {"block_hash": "0x" + "11" * 32, "depth": 1, "reason": "r"}, "revocation"),
            Reason.OUT_OF_ORDER,
            "kind",
        ),
    ],
)
def test_what_is_refused_changes_nothing(bad: Append, reason: Reason, field: str) -> None:
    log = Log()
    log.place(append("b", "k:1", {}))
    root = log.edge.frontier.root()
    (outcome,) = log.place(bad)
    assert isinstance(outcome, WalletError)
    assert (outcome.reason, outcome.details["field"]) == (reason, field)
    assert (log.edge.size, log.edge.frontier.root(), len(log.stored)) == (1, root, 1)
    assert log.links[bad.link_id] == Link()


def test_an_unforeseen_error_is_one_entrys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(kind: str, body: dict[str, Any]) -> None:
        if "break" in body:
            raise KeyError("unforeseen")

    monkeypatch.setattr(placement_module, "check_body", breaks)
    log = Log()
    good, bad, after = log.place(append("a", "k:1", {}), append("a", "k:2", {"break": 1}), append("a", "k:3", {}))
    assert (good.index, bad.reason, after.index) == (0, Reason.INTERNAL, 1)


def test_erased_and_damaged_links_take_nothing_more() -> None:
    log = Log()
    log.place(append("a", "k:1", {"n": 1}))
    (kept,) = log.stored
    gone = StoredEntry(kept.index, kept.link_id, kept.step, kept.entry_id, kept.leaf, kept.leaf_hash, None, None)
    log.links["a"] = replay([gone])
    closed, same = log.place(append("a", "k:2", {}), append("a", "k:1", {"n": 1}))
    assert (log.links["a"].state, closed.reason) == ("ERASED", Reason.LINK_CLOSED)
    assert isinstance(same, SameId)
    log.links["a"] = Link(damaged=True)
    assert log.place(append("a", "k:2", {}))[0].reason is Reason.INTERNAL
    forged = StoredEntry(0, "a", 0, "k:1", kept.leaf, kept.leaf_hash, kept.salt, b"[]")
    with pytest.raises(WalletError):
        replay([forged])


def test_safe_and_finalized_name_as_many_nodes_as_the_trust_file_will_ask_for() -> None:
    log = Log()
    drafts = forge.plain_link()
    drafts[5].body["agreeing_nodes"] = ["node-a"]
    outcomes = [
        log.place(append("t-1", f"e:{n}", draft.body, draft.kind), at=forge.START + timedelta(seconds=draft.at))[0]
        for n, draft in enumerate(drafts[:6])
    ]
    assert isinstance(outcomes[4], Appended)
    assert (outcomes[5].reason, outcomes[5].details["field"]) == (Reason.INVALID_REQUEST, "agreeing_nodes")
