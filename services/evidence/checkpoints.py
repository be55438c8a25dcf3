"""Signed checkpoints: cut when the log has grown, kept in the database and in a file outside it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from services.core.errors import WalletError
from services.core.notes import Checkpoint, sign_note
from services.evidence.checkpoint_file import read_checkpoint
from services.evidence.memory import Memory, SigningKey
from services.evidence.sequencer import Sequencer
from services.evidence.store import Store, StoredCheckpoint
from services.evidence.tiles import TileReader

_log = logging.getLogger(__name__)


class CheckpointCutter:
    """Cuts at most one checkpoint per interval, and only of a log that extends the newest one that it knows.

    Where another sequencer holds the lease, it follows what that one publishes.
    """

    def __init__(
        self,
        store: Store,
        tiles: TileReader,
        sequencer: Sequencer,
        key: SigningKey,
        memory: Memory,
        interval_s: float,
    ) -> None:
        self._store = store
        self._tiles = tiles
        self._sequencer = sequencer
        self._key = key
        self._memory = memory
        self._interval_s = interval_s
        self._newest: StoredCheckpoint | None = None
        self._published = asyncio.Condition()
        # Why the last attempt to cut one failed.
        self.trouble: str | None = None

    @property
    def newest(self) -> StoredCheckpoint | None:
        return self._newest

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
                trouble = f"no newer checkpoint: {error.message if isinstance(error, WalletError) else error!r}"
                if trouble != self.trouble:
                    _log.warning(trouble, exc_info=None if isinstance(error, WalletError) else error)
                self.trouble = trouble
            else:
                self.trouble = None
            if grown:
                await asyncio.sleep(self._interval_s)

    async def _follow(self) -> None:
        published = await self._store.newest_checkpoint()
        if published is None or (checkpoint := read_checkpoint(published.note, self._key.note_key)) is None:
            return
        await self._memory.follow(checkpoint, published.note)
        await self._publish(published)

    async def _cut(self) -> None:
        """(1) Check that the log extends the last one. (2) Sign it. (3) Keep it in the file. (4) Publish it."""
        if self._newest is None and (published := await self._store.newest_checkpoint()) is not None:
            await self._publish(published)
        size = self._sequencer.size
        if size is None or self._sequencer.refusal or (self._newest is not None and size <= self._newest.tree_size):
            return
        if self._newest is not None and await self._tiles.root(self._newest.tree_size) != self._newest.root_hash:
            self._sequencer.refusal = "the log does not extend its last checkpoint"
            _log.critical("appends are refused", extra={"cause": self._sequencer.refusal})
            return
        root = await self._tiles.root(size)
        checkpoint = Checkpoint(self._key.note_key.name, size, root)
        signature = await self._key.sign(checkpoint.text.encode())
        note = sign_note(checkpoint.text, self._key.note_key, lambda _: signature)
        # File before row: whatever was published is in the file, so a lost commit shows.
        await self._memory.keep(checkpoint, note)
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
