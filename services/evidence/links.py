"""A link as the log's writer and its readers need it, derived from its entries: no second copy of it is stored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from services.core.canonical import parse_canonical
from services.core.entries import Leaf
from services.core.grammar import LinkHead, advance
from services.evidence.store import StoredEntry


@dataclass(slots=True)  # one an entry, and a frozen one takes four times as long to make
class Appended:
    """Where an entry stands; `already_stored` when an earlier call put it there."""

    index: int
    step: int
    leaf_hash: bytes
    at: datetime
    already_stored: bool


@dataclass(slots=True)
class Link:
    """The grammar's head, and the entries by their ids."""

    head: LinkHead | None = None
    entries: dict[str, Appended] = field(default_factory=dict)
    # A body was erased: the link can be read, and no more be checked, so nothing may follow.
    erased: bool = False
    # What is stored breaks the grammar: damage, or a grammar that became stricter. Nothing may follow.
    damaged: bool = False

    @property
    def state(self) -> str:
        if self.erased or self.head is None:
            return "ERASED"
        return self.head.state.value


def replay(entries: Iterable[StoredEntry]) -> Link:
    """The link that stored entries make, in the order of the log.

    Raises:
        WalletError: what the grammar has against them.
    """
    link = Link()
    for entry in entries:
        leaf = Leaf.decode(entry.leaf)
        link.erased = link.erased or entry.body is None
        if not link.erased and entry.body is not None:
            body = parse_canonical(entry.body, "body")
            head = advance(link.head, leaf.kind, body, leaf.at, trace_id=leaf.trace_id)
            link.head = head.with_leaf_hash(entry.leaf_hash)
        link.entries[entry.entry_id] = Appended(entry.index, entry.step, entry.leaf_hash, leaf.at, already_stored=False)
    return link
