"""The one writer of the log: takes what waits, checks it against the link grammar, commits it as a group.

Concurrent appends share a transaction and its fsync. The lease keeps a second sequencer idle; the compare-and-set on
the head row keeps it harmless.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from time import perf_counter
from typing import NamedTuple

from services.core.entries import Kind, check_link_id
from services.core.errors import Reason, WalletError
from services.evidence.links import Appended, Link, replay
from services.evidence.memory import Memory
from services.evidence.metrics import count_append, losses, takeovers
from services.evidence.placement import Append, Placement, SameId
from services.evidence.store import LinkIsKnown, LogHead, Store, StoredEntry

_log = logging.getLogger(__name__)

# Of one commit: they bound the latency of whoever waits behind. One call is never split.
_GROUP_ENTRIES = 2_000
_GROUP_BYTES = 16 << 20
_MAX_WAITING_BYTES = 128 << 20
_CACHED_LINKS = 20_000
# A database that does not answer in this time has not answered: the outcome is unknown, and the head is read anew.
_DATABASE_TIMEOUT_S = 10.0
_RELEASE_TIMEOUT_S = 1.0


class Conflict(NamedTuple):
    """The entry id is taken by `stored_body` (None: erased)."""

    error: WalletError
    stored_body: bytes | None


Outcome = Appended | WalletError | Conflict


class _Waiting(NamedTuple):
    appends: list[Append]
    bytes: int
    # A refusal of the whole call is a result too: nobody may be there any more to take an exception.
    outcome: asyncio.Future[list[Outcome] | WalletError]


class Sequencer:
    def __init__(
        self,
        store: Store,
        *,
        nodes_required: int,
        lease_s: float,
        max_waiting_entries: int,
        clock: Callable[[datetime | None], Awaitable[datetime]],
    ) -> None:
        """`clock` tells the time of the next entry, given the newest one's; it raises WalletError when it cannot."""
        self._store = store
        self._nodes_required = nodes_required
        self._lease_s = lease_s
        self._max_waiting = max_waiting_entries
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._waiting_entries = 0
        self._waiting_bytes = 0
        # Resolved when there is something to do; who waits for it makes it.
        self._wake: asyncio.Future[None] | None = None
        self._head: LogHead | None = None
        # Of the newest lease that was ours; while no other came after, it is ours to take again at once.
        self._epoch: int | None = None
        self._absence = "the evidence log is being opened"
        self._links: OrderedDict[str, Link] = OrderedDict()
        self.grown = asyncio.Event()
        # Whether the lease is held has changed.
        self.turned = asyncio.Event()
        # Why nothing may be appended although this is the sequencer.
        self.refusal: str | None = None

    @property
    def size(self) -> int | None:
        """Entries committed; None while this sequencer holds no lease."""
        return self._head.committed if self._head else None

    @property
    def waiting_entries(self) -> int:
        return self._waiting_entries

    def missing(self) -> list[str]:
        """Why entries cannot be appended now, one sentence each."""
        if self.refusal:
            return [self.refusal]
        return [] if self._head else [self._absence]

    async def append(self, appends: list[Append]) -> list[Outcome]:
        """Append entries in order; answers after the commit, one outcome each.

        Raises:
            WalletError: EVIDENCE_UNAVAILABLE (retry with the same entry ids), RATE_LIMITED when too many wait.
        """
        if missing := self.missing():
            raise WalletError(Reason.EVIDENCE_UNAVAILABLE, missing[0])
        size = sum(len(append.body) for append in appends)
        if self._waiting and (
            self._waiting_entries + len(appends) > self._max_waiting or self._waiting_bytes + size > _MAX_WAITING_BYTES
        ):
            raise WalletError(Reason.RATE_LIMITED, "too many entries wait for the log", waiting=self._waiting_entries)
        outcome: asyncio.Future[list[Outcome] | WalletError] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(appends, size, outcome))
        self._waiting_entries += len(appends)
        self._waiting_bytes += size
        began = perf_counter()
        _awaken(self._wake)
        # A caller that gives up does not undo what is on its way into the log: nobody waits for its outcome, no more.
        result = await outcome
        count_append(began, result)
        if isinstance(result, WalletError):
            raise result
        return result

    async def run(self, memory: Memory) -> None:
        """Hold the lease and commit groups until cancelled. `memory` judges the log each time it is taken over."""
        try:
            while True:
                if self._head is None:
                    await self._take_over(memory)
                    continue
                await self._sleep()
                if not self._waiting:
                    await self._renew(self._head)
                while self._waiting and self._head is not None:
                    await self._commit_group(self._head, self._next_group())
        finally:
            self._head = None
            self._absence = "the evidence log's sequencer has stopped"
            self._refuse_waiting()
            if self._epoch is not None:
                with suppress(WalletError, TimeoutError):
                    async with asyncio.timeout(_RELEASE_TIMEOUT_S):
                        await self._store.release(self._epoch)

    async def _sleep(self) -> None:
        """Return when an entry waits, or when the lease is due to be renewed."""
        if self._waiting:
            return
        loop = asyncio.get_running_loop()
        self._wake = loop.create_future()
        due = loop.call_later(self._lease_s / 3, _awaken, self._wake)
        try:
            await self._wake
        finally:
            due.cancel()

    async def _take_over(self, memory: Memory) -> None:
        head = None
        try:
            async with asyncio.timeout(_DATABASE_TIMEOUT_S):
                unfit = await memory.unfit()
                if unfit is None:
                    await self._clock(await self._store.last_at())
                    head = await self._store.take_over(self._lease_s, self._epoch)
                if head is not None:
                    self._epoch = head.epoch
                    self.refusal = await memory.compare(head)
        except Exception as error:
            self._explain(f"the evidence log cannot be taken over: {_meaning(error)}", error)
        else:
            if head is not None:
                self._head = head
                self.grown.set()
                self.turned.set()
                takeovers.add(1)
                _log.info("sequencing", extra={"tree_size": head.committed, "epoch": head.epoch})
                if self.refusal:
                    _log.critical("appends are refused", extra={"cause": self.refusal})
                    self._refuse_waiting()
                return
            self._explain(unfit or "the evidence log's lease is held by another sequencer")
        self._refuse_waiting()
        await asyncio.sleep(self._lease_s / 10)

    def _explain(self, absence: str, error: Exception | None = None) -> None:
        """Say once, not at every try, why this sequencer stands by."""
        if absence != self._absence:
            self._absence = absence
            unforeseen = error is not None and not isinstance(error, WalletError | TimeoutError)
            _log.warning(absence, exc_info=error if unforeseen else None)

    async def _renew(self, head: LogHead) -> None:
        try:
            # Later than the lease, a renewal says nothing.
            async with asyncio.timeout(self._lease_s):
                # Whoever could not stamp an entry now leaves the log to another.
                await self._clock(head.last_at)
                if not await self._store.renew(head.epoch, self._lease_s):
                    self._lose("a newer sequencer has taken over")
        except (WalletError, TimeoutError) as error:
            self._lose(_meaning(error))

    def _lose(self, cause: str) -> None:
        """Forget everything: what was committed is in the database, and is read again with the next lease."""
        if self._head is not None:
            losses.add(1)
            _log.warning("the log's head is no longer ours", extra={"cause": cause})
            self._absence = f"the evidence log was lost: {cause}"
        self._head = None
        self.turned.set()
        self._links.clear()

    def _next_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        entries = size = 0
        while self._waiting:
            waiting = self._waiting[0]
            entries, size = entries + len(waiting.appends), size + waiting.bytes
            if group and (entries > _GROUP_ENTRIES or size > _GROUP_BYTES):
                break
            group.append(self._take())
        return group

    def _take(self) -> _Waiting:
        waiting = self._waiting.popleft()
        self._waiting_entries -= len(waiting.appends)
        self._waiting_bytes -= waiting.bytes
        return waiting

    def _refuse_waiting(self) -> None:
        while self._waiting:
            _answer(self._take(), WalletError(Reason.EVIDENCE_UNAVAILABLE, "the evidence log has no sequencer now"))

    async def _commit_group(self, head: LogHead, group: list[_Waiting]) -> None:
        """(1) Load the links that are not cached. (2) Check and place each entry. (3) Commit. (4) Answer."""
        try:
            async with asyncio.timeout(_DATABASE_TIMEOUT_S):
                try:
                    answers = await self._commit(head, group, take_for_new=True)
                except LinkIsKnown:
                    # Nothing is written. What was placed is forgotten, and all is done again behind a look-up.
                    for waiting in group:
                        for append in waiting.appends:
                            self._links.pop(append.link_id, None)
                    answers = await self._commit(head, group, take_for_new=False)
        except BaseException as error:
            # Whether the commit took effect is unknown: the head is read again, and the links are.
            self._lose(_meaning(error))
            if not isinstance(error, WalletError | TimeoutError | asyncio.CancelledError):
                _log.exception("the group could not be committed")
            for waiting in group:
                _answer(waiting, WalletError(Reason.EVIDENCE_UNAVAILABLE, "the entries could not be committed"))
            if not isinstance(error, Exception):
                raise
            return
        # (4)
        for waiting, outcomes in zip(group, answers, strict=True):
            _answer(waiting, outcomes)
        while len(self._links) > _CACHED_LINKS:
            self._links.popitem(last=False)

    async def _commit(self, head: LogHead, group: list[_Waiting], *, take_for_new: bool) -> list[list[Outcome]]:
        """The outcomes of each call, once they are true; the head has moved then, and only then.

        Raises:
            LinkIsKnown: a link that was taken for a new one may not be; nothing is written.
        """
        # (1)
        new = await self._load_links(group, take_for_new)
        # (2)
        at = await self._clock(head.last_at)
        edge = head.edge.copy()
        placement = Placement(edge, at, self._links, self._nodes_required)
        placed = [[placement.place(append) for append in waiting.appends] for waiting in group]
        if any(not self._links[link_id].entries for link_id in new):
            # Refused as the first entry of a link, which no commit shows that it would have been.
            raise LinkIsKnown
        # (3)
        if placement.entries:
            ours = await self._store.append(head, edge, at, self._lease_s, placement.entries, placement.tiles)
        else:
            # Refusals come from what we remember, which is the log only as long as the lease is ours.
            ours = await self._store.renew(head.epoch, self._lease_s)
        if not ours:
            raise WalletError(Reason.EVIDENCE_UNAVAILABLE, "a newer sequencer has taken over")
        answers = await self._resolve(placed)
        head.edge, head.last_at, head.committed, head.frontier = edge, at, edge.size, edge.frontier.to_bytes()
        if placement.entries:
            self.grown.set()
        return answers

    async def _load_links(self, group: list[_Waiting], take_for_new: bool) -> list[str]:
        """Have the group's links in memory; the ids of those that were taken for new ones, without a look-up.

        Nearly every link that is not cached is new, and begins with its intent. Whether it is, the commit shows: an old
        one has its first step already, so the constraint (link, step) breaks and nothing is written.
        """
        new: list[str] = []
        stored: dict[str, list[StoredEntry]] = {}
        for waiting in group:
            for append in waiting.appends:
                link_id = append.link_id
                if link_id in self._links:
                    self._links.move_to_end(link_id)
                elif link_id not in stored:
                    with suppress(WalletError):
                        check_link_id(link_id)
                        if take_for_new and append.kind == Kind.INTENT:
                            self._links[link_id] = Link()
                            new.append(link_id)
                        else:
                            stored[link_id] = []
        if stored:
            await self._read_links(stored)
        return new

    async def _read_links(self, stored: dict[str, list[StoredEntry]]) -> None:
        for entry in await self._store.entries_of_links(list(stored)):
            stored[entry.link_id].append(entry)
        for link_id, entries in stored.items():
            try:
                self._links[link_id] = replay(entries)
            except WalletError as error:
                _log.critical("a stored link is damaged", extra={"link_id": link_id, "cause": str(error)})
                self._links[link_id] = Link(damaged=True)

    async def _resolve(self, placed: list[list[Appended | WalletError | SameId]]) -> list[list[Outcome]]:
        """Compare the bodies of entry ids that were there already, in one query for the group."""
        same = [outcome.stored.index for row in placed for outcome in row if isinstance(outcome, SameId)]
        bodies = await self._store.bodies(same) if same else {}
        return [
            [
                _same_or_conflict(outcome, bodies.get(outcome.stored.index)) if isinstance(outcome, SameId) else outcome
                for outcome in row
            ]
            for row in placed
        ]


def _same_or_conflict(same: SameId, stored_body: bytes | None) -> Appended | Conflict:
    if stored_body == same.body:
        return replace(same.stored, already_stored=True)
    error = WalletError(Reason.ENTRY_CONFLICT, Reason.ENTRY_CONFLICT.meaning, field="entry_id", index=same.stored.index)
    return Conflict(error, stored_body)


def _awaken(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _answer(waiting: _Waiting, result: list[Outcome] | WalletError) -> None:
    if not waiting.outcome.done():
        waiting.outcome.set_result(result)


def _meaning(error: BaseException) -> str:
    if isinstance(error, WalletError):
        return error.message
    return "it does not answer in time" if isinstance(error, TimeoutError) else type(error).__name__
