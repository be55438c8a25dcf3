"""The one writer of the log: takes what waits, checks it against the link grammar, commits it as a group.

Concurrent appends share a transaction and its fsync. The lease keeps a second sequencer idle; the compare-and-set on
the head row keeps it harmless.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from services.core.canonical import parse_canonical
from services.core.entries import SALT_SIZE, Kind, Leaf, body_commitment, check_body, check_link_id, leaf_hash
from services.core.errors import Reason, WalletError, refuse
from services.core.grammar import advance
from services.evidence.links import Appended, Link, replay
from services.evidence.store import LogHead, NewEntry, Store, StoredEntry

_log = logging.getLogger(__name__)

MAX_ENTRY_ID = 128  # characters
_GROUP_ENTRIES = 2_000  # per commit: bounds the latency of whoever waits behind
_CACHED_LINKS = 50_000
_KINDS = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Append:
    """One entry to be appended; `body` is canonical JSON."""

    link_id: str
    entry_id: str
    kind: str
    trace_id: str
    span_id: str
    body: bytes


class Conflict(NamedTuple):
    """The entry id is taken by `stored_body` (None: erased)."""

    error: WalletError
    stored_body: bytes | None


Outcome = Appended | WalletError | Conflict


class _Waiting(NamedTuple):
    appends: list[Append]
    outcome: asyncio.Future[list[Outcome]]


class Sequencer:
    def __init__(self, store: Store, *, nodes_required: int, lease_s: float, max_waiting_entries: int) -> None:
        self._store = store
        self._nodes_required = nodes_required
        self._lease_s = lease_s
        self._max_waiting = max_waiting_entries
        self._waiting: deque[_Waiting] = deque()
        self._waiting_entries = 0
        self._wake = asyncio.Event()
        self._head: LogHead | None = None
        self._links: OrderedDict[str, Link] = OrderedDict()
        self.grown = asyncio.Event()
        # Why nothing may be appended although this is the sequencer: set by the checkpoint's comparison.
        self.refusal: str | None = None

    @property
    def size(self) -> int | None:
        """Entries committed, as far as this sequencer knows; None while it holds no lease."""
        return self._head.edge.size if self._head else None

    @property
    def head(self) -> LogHead | None:
        return self._head

    def missing(self) -> list[str]:
        """Why entries cannot be appended now, one sentence each."""
        if self.refusal:
            return [self.refusal]
        return [] if self._head else ["the evidence log has no sequencer: its lease is held elsewhere or being taken"]

    async def append(self, appends: list[Append]) -> list[Outcome]:
        """Append entries in order; answers after the commit, one outcome each.

        Raises:
            WalletError: EVIDENCE_UNAVAILABLE (retry with the same entry ids), RATE_LIMITED when too many wait.
        """
        if missing := self.missing():
            raise WalletError(Reason.EVIDENCE_UNAVAILABLE, missing[0])
        if self._waiting_entries and self._waiting_entries + len(appends) > self._max_waiting:
            raise WalletError(Reason.RATE_LIMITED, "too many entries wait for the log", waiting=self._waiting_entries)
        outcome: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(appends, outcome))
        self._waiting_entries += len(appends)
        self._wake.set()
        # A caller that gives up does not undo what is on its way into the log.
        return await asyncio.shield(outcome)

    async def run(self) -> None:
        """Hold the lease and commit groups until cancelled."""
        try:
            while True:
                if self._head is None:
                    await self._take_over()
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._lease_s / 3):
                        await self._wake.wait()
                if self._waiting:
                    await self._commit_group(self._next_group())
                else:
                    await self._renew()
                if not self._waiting:
                    self._wake.clear()
        finally:
            self._refuse_waiting()
            if self._head is not None:
                with suppress(WalletError):
                    await self._store.release(self._head.epoch)

    async def _take_over(self) -> None:
        try:
            self._head = await self._store.take_over(self._lease_s)
        except WalletError as error:
            _log.warning("the log's head cannot be read", extra={"reason": error.reason.name})
        if self._head is None:
            self._refuse_waiting()
            await asyncio.sleep(self._lease_s / 10)
            return
        self._links.clear()
        self.grown.set()
        _log.info("sequencing", extra={"tree_size": self._head.edge.size, "epoch": self._head.epoch})

    async def _renew(self) -> None:
        assert self._head is not None
        try:
            if not await self._store.renew(self._head.epoch, self._lease_s):
                self._lose("a newer sequencer has taken over")
        except WalletError as error:
            self._lose(error.message)

    def _lose(self, cause: str) -> None:
        """Forget everything: what was committed is in the database, and is read again with the next lease."""
        _log.warning("the log's head is no longer ours", extra={"cause": cause})
        self._head = None
        self._links.clear()

    def _next_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        taken = 0
        while self._waiting and (not group or taken + len(self._waiting[0].appends) <= _GROUP_ENTRIES):
            waiting = self._waiting.popleft()
            group.append(waiting)
            taken += len(waiting.appends)
        self._waiting_entries -= taken
        return group

    def _refuse_waiting(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            self._waiting_entries -= len(waiting.appends)
            _refuse(waiting, WalletError(Reason.EVIDENCE_UNAVAILABLE, "the evidence log has no sequencer now"))

    async def _commit_group(self, group: list[_Waiting]) -> None:
        """(1) Load the links that are not cached. (2) Check and place each entry. (3) Commit. (4) Answer."""
        head = self._head
        assert head is not None
        try:
            await self._load_links({append.link_id for waiting in group for append in waiting.appends})
            size = head.edge.size
            placement = _Placement(head, self._links, self._nodes_required)
            outcomes = [[placement.place(append) for append in waiting.appends] for waiting in group]
            if placement.entries and not await self._store.append(
                size, head.epoch, head.edge.frontier, placement.at, self._lease_s, placement.entries, placement.tiles
            ):
                raise WalletError(Reason.EVIDENCE_UNAVAILABLE, "a newer sequencer has taken over")
            # Read outside the group's statement: a conflict is rare and its entry never changes.
            answers = [[await self._resolve(outcome) for outcome in row] for row in outcomes]
        except Exception as error:
            # Whether the commit took effect is unknown; in memory the edge has moved. Read both again.
            if not isinstance(error, WalletError):
                _log.exception("the group could not be committed")
            self._lose(str(error))
            for waiting in group:
                _refuse(waiting, WalletError(Reason.EVIDENCE_UNAVAILABLE, "the entries could not be committed"))
            return
        head.last_at = placement.at
        if placement.entries:
            self.grown.set()
        for waiting, row in zip(group, answers, strict=True):
            if not waiting.outcome.done():
                waiting.outcome.set_result(row)
        while len(self._links) > _CACHED_LINKS:
            self._links.popitem(last=False)

    async def _load_links(self, link_ids: set[str]) -> None:
        unknown = []
        for link_id in link_ids:
            if link_id in self._links:
                self._links.move_to_end(link_id)
            else:
                unknown.append(link_id)
        if not unknown:
            return
        stored: dict[str, list[StoredEntry]] = {link_id: [] for link_id in unknown}
        for entry in await self._store.entries_of_links(unknown):
            stored[entry.link_id].append(entry)
        for link_id, entries in stored.items():
            self._links[link_id] = replay(entries)

    async def _resolve(self, outcome: Outcome | _SameId) -> Outcome:
        if not isinstance(outcome, _SameId):
            return outcome
        stored_body = await self._store.body(outcome.stored.index)
        if stored_body == outcome.body:
            return replace(outcome.stored, already_stored=True)
        error = WalletError(
            Reason.ENTRY_CONFLICT, Reason.ENTRY_CONFLICT.meaning, field="entry_id", index=outcome.stored.index
        )
        return Conflict(error, stored_body)


class _SameId(NamedTuple):
    """An entry id that is stored already; whether the bodies are equal is for the store to say."""

    stored: Appended
    body: bytes


class _Placement:
    """Places the entries of one group behind the log's end, in memory."""

    def __init__(self, head: LogHead, links: OrderedDict[str, Link], nodes_required: int) -> None:
        self._edge = head.edge
        self._links = links
        self._nodes_required = nodes_required
        now = datetime.now(UTC)
        # The log's clock never runs backwards, whatever the machine's does.
        self.at = max(now, head.last_at) if head.last_at else now
        self.entries: list[NewEntry] = []
        self.tiles: list[tuple[int, int, bytes]] = []

    def place(self, append: Append) -> Outcome | _SameId:
        link = self._links.get(append.link_id)
        if link is None:
            # `_load_links` found it; only a group with more links than the cache holds gets here.
            link = self._links[append.link_id] = Link()
        if (stored := link.entries.get(append.entry_id)) is not None:
            return _SameId(stored, append.body)
        try:
            return self._add(append, link)
        except WalletError as error:
            return error

    def _add(self, append: Append, link: Link) -> Appended:
        check_link_id(append.link_id)
        if not 0 < len(append.entry_id) <= MAX_ENTRY_ID:
            refuse("entry_id", f"has 1 to {MAX_ENTRY_ID} characters")
        if append.kind not in _KINDS:
            refuse("kind", "is a known kind")
        if link.erased:
            refuse("kind", "is nothing, for a body of the link was erased", Reason.LINK_CLOSED)
        kind = Kind(append.kind)
        salt = secrets.token_bytes(SALT_SIZE)
        commitment = body_commitment(salt, append.body)
        body = parse_canonical(append.body, "body")
        check_body(kind, body)
        head = advance(
            link.head, kind, body, self.at, trace_id=append.trace_id, min_agreeing_nodes=self._nodes_required
        )
        leaf = Leaf(
            kind=kind,
            link_id=append.link_id,
            step=head.step,
            prev=link.head.leaf_hash if link.head else b"",
            at=self.at,
            trace_id=append.trace_id,
            span_id=append.span_id,
            body=commitment,
        ).encode()
        # Nothing below can fail: the tree and the link move together.
        index = self._edge.size
        hashed = leaf_hash(leaf)
        self.tiles += self._edge.append(hashed)
        self.entries.append(
            NewEntry(index, append.link_id, head.step, append.entry_id, leaf, hashed, salt, append.body)
        )
        link.head = head.with_leaf_hash(hashed)
        appended = Appended(index, head.step, hashed, self.at, already_stored=False)
        link.entries[append.entry_id] = appended
        return appended


def _refuse(waiting: _Waiting, error: WalletError) -> None:
    if not waiting.outcome.done():
        waiting.outcome.set_exception(error)
