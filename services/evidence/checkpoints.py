"""Signed checkpoints: cut when the log has grown, kept in the database and in a file outside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from services.core.errors import WalletError
from services.core.notes import Checkpoint, NoteKey, sign_note
from services.evidence.checkpoint_file import CheckpointFile, read_checkpoint
from services.evidence.sequencer import Sequencer
from services.evidence.store import LogHead, Store, StoredCheckpoint
from services.evidence.tiles import TileReader

_log = logging.getLogger(__name__)

Sign = Callable[[bytes], Awaitable[bytes]]


class CheckpointCutter:
    """Cuts at most one checkpoint per interval, and only of a log that extends the newest one that it knows.

    Where another sequencer holds the lease, it follows what that one publishes.
    """

    def __init__(
        self,
        store: Store,
        tiles: TileReader,
        sequencer: Sequencer,
        key: NoteKey,
        sign: Sign,
        file: CheckpointFile,
        interval_s: float,
    ) -> None:
        self._store = store
        self._tiles = tiles
        self._sequencer = sequencer
        self._key = key
        self._sign = sign
        self._file = file
        self._interval_s = interval_s
        self._newest: StoredCheckpoint | None = None
        self._published = asyncio.Condition()
        # Why the last attempt to cut one failed.
        self.trouble: str | None = None

    @property
    def newest(self) -> StoredCheckpoint | None:
        return self._newest

    async def compare(self, head: LogHead) -> str | None:
        """What is wrong with the log as it was taken over, one sentence; None when it is the one that we know.

        A restored backup or a failover that lost commits is behind the newest checkpoint; a log that was rewritten has
        another root. Both can happen while this process runs.
        """
        self._tiles.forget()
        if await self._tiles.root(head.committed) != head.edge.frontier.root():
            return "the log's entries do not hash to its head"
        published = await self._store.newest_checkpoint()
        if published is not None and read_checkpoint(published.note, self._key) is None:
            return "the log's checkpoints are not signed by this token's key, or have another origin"
        if not self._file.exists():
            if published is None:
                return None
            return f"the checkpoint file {self._file.name} is missing while the log has checkpoints"
        try:
            kept = self._file.read()
        except OSError as error:
            return f"the checkpoint file {self._file.name} cannot be read: {error.strerror}"
        if kept is None:
            return f"the checkpoint file {self._file.name} is not signed by this token's key"
        known = [(kept.tree_size, kept.root_hash)]
        if self._newest is not None:
            known.append((self._newest.tree_size, self._newest.root_hash))
        for tree_size, root in known:
            if head.committed < tree_size:
                return f"the log has {head.committed} entries and its last checkpoint {tree_size}: commits were lost"
            if await self._tiles.root(tree_size) != root:
                return f"the log's root at {tree_size} entries is not the one of its last checkpoint"
        return None

    async def run(self) -> None:
        """Cut whenever the log has grown, or follow whoever does, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._sequencer.grown.wait()
            grown = self._sequencer.grown.is_set()
            self._sequencer.grown.clear()
            try:
                if self._sequencer.size is None:
                    await self._follow()
                else:
                    await self._cut()
            except Exception as error:
                self._sequencer.grown.set()
                trouble = f"no checkpoint can be cut: {error.message if isinstance(error, WalletError) else error!r}"
                if trouble != self.trouble:
                    _log.warning(trouble, exc_info=None if isinstance(error, WalletError) else error)
                self.trouble = trouble
            else:
                self.trouble = None
            if grown:
                await asyncio.sleep(self._interval_s)

    async def _follow(self) -> None:
        published = await self._store.newest_checkpoint()
        if published is not None and read_checkpoint(published.note, self._key) is not None:
            await self._publish(published)

    async def _cut(self) -> None:
        """(1) Check that the log extends the last one. (2) Sign it. (3) Keep it in the file. (4) Publish it."""
        if self._newest is None:
            await self._follow()
        size = self._sequencer.size
        if size is None or self._sequencer.refusal or (self._newest is not None and size <= self._newest.tree_size):
            return
        if self._newest is not None and await self._tiles.root(self._newest.tree_size) != self._newest.root_hash:
            self._sequencer.refusal = "the log does not extend its last checkpoint"
            _log.critical("appends are refused", extra={"cause": self._sequencer.refusal})
            return
        root = await self._tiles.root(size)
        checkpoint = Checkpoint(self._key.name, size, root)
        signature = await self._sign(checkpoint.text.encode())
        note = sign_note(checkpoint.text, self._key, lambda _: signature)
        # File before row: whatever was published is in the file, so a lost commit shows.
        await asyncio.to_thread(self._file.keep, checkpoint, note)
        stored = StoredCheckpoint(size, root, note)
        await self._store.add_checkpoint(stored)
        await self._publish(stored)

    async def _publish(self, checkpoint: StoredCheckpoint) -> None:
        async with self._published:
            if self._newest is None or checkpoint.tree_size > self._newest.tree_size:
                self._newest = checkpoint
                self._published.notify_all()

    async def wait_for(self, tree_size: int, timeout_s: float) -> StoredCheckpoint | None:
        """The newest checkpoint once it covers `tree_size` entries; None if it does not in time."""
        try:
            async with asyncio.timeout(timeout_s), self._published:
                await self._published.wait_for(lambda: self._covers(tree_size))
        except TimeoutError:
            return None
        return self._newest

    def _covers(self, tree_size: int) -> bool:
        return self._newest is not None and self._newest.tree_size >= tree_size
