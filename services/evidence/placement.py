"""Where an entry goes: its place in its link by the grammar, and in the log behind the last one. Pure."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from services.core.canonical import parse_canonical
from services.core.entries import SALT_SIZE, Kind, body_commitment, check_body, check_link_id, encode_leaf, leaf_hash
from services.core.errors import Reason, WalletError, refuse
from services.core.grammar import LinkHead, advance
from services.evidence.links import Appended, Link
from services.evidence.store import NewEntry
from services.evidence.tree import FullTile, TreeEdge

_log = logging.getLogger(__name__)

_ENTRY_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_KINDS = {kind.value: kind for kind in Kind}


class Append(NamedTuple):
    """One entry to be appended; `body` is canonical JSON."""

    link_id: str
    entry_id: str
    kind: str
    trace_id: str
    span_id: str
    body: bytes


class SameId(NamedTuple):
    """An entry id that is in the log already; whether the bodies are equal is for the store to say."""

    stored: Appended
    body: bytes


class Placement:
    """Places the entries of one group, in memory. `links` holds every link that the group names."""

    def __init__(self, edge: TreeEdge, at: datetime, links: Mapping[str, Link], nodes_required: int) -> None:
        self._edge = edge
        self._at = at
        self._links = links
        self._nodes_required = nodes_required
        self.entries: list[NewEntry] = []
        self.tiles: list[FullTile] = []

    def place(self, append: Append) -> Appended | WalletError | SameId:
        link = self._links.get(append.link_id)
        if link is not None and (stored := link.entries.get(append.entry_id)) is not None:
            return SameId(stored, append.body)
        try:
            if link is None:
                check_link_id(append.link_id)
            assert link is not None
            head, leaf, salt = self._check(append, link)
        except WalletError as error:
            return error
        except Exception:
            # One entry that nobody foresaw does not keep its neighbours out of the log, now and at every retry.
            _log.exception("an entry could not be checked")
            return WalletError(Reason.INTERNAL, Reason.INTERNAL.meaning)
        # Nothing below can fail: the tree and the link move together.
        index = self._edge.size
        hashed = leaf_hash(leaf)
        self.tiles += self._edge.append(hashed)
        self.entries.append(
            NewEntry(index, append.link_id, head.step, append.entry_id, leaf, hashed, salt, append.body)
        )
        link.head = head.with_leaf_hash(hashed)
        appended = Appended(index, head.step, hashed, self._at, already_stored=False)
        link.entries[append.entry_id] = appended
        return appended

    def _check(self, append: Append, link: Link) -> tuple[LinkHead, bytes, bytes]:
        """(the link's head behind the entry, leaf, salt), and nothing changed."""
        if not _ENTRY_ID.fullmatch(append.entry_id):
            refuse("entry_id", "is 1 to 128 characters of A-Z a-z 0-9 . _ : -")
        kind = _KINDS.get(append.kind)
        if kind is None:
            refuse("kind", "is a known kind")
        if link.damaged:
            raise WalletError(Reason.INTERNAL, "what is stored of the link is damaged", field="link_id")
        if link.erased:
            refuse("kind", "is nothing, for a body of the link was erased", Reason.LINK_CLOSED)
        salt = secrets.token_bytes(SALT_SIZE)
        commitment = body_commitment(salt, append.body)
        body = parse_canonical(append.body, "body")
        check_body(kind, body)
        head = advance(
            link.head, kind, body, self._at, trace_id=append.trace_id, min_agreeing_nodes=self._nodes_required
        )
        prev = link.head.leaf_hash if link.head else b""
        leaf = encode_leaf(kind, append.link_id, head.step, prev, self._at, append.trace_id, append.span_id, commitment)
        return head, leaf, salt
