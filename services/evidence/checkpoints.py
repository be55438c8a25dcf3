"""Signed checkpoints: cut when the log has grown, kept in the database and in a file outside it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from services.core.errors import WalletError
from services.core.notes import Checkpoint, NoteKey, open_note, sign_note
from services.evidence.sequencer import Sequencer
from services.evidence.store import Store, StoredCheckpoint
from services.evidence.tiles import TileReader

_log = logging.getLogger(__name__)

Sign = Callable[[bytes], Awaitable[bytes]]


class CheckpointCutter:
    """Cuts at most one checkpoint per interval, and only of a log that extends the newest one it ever signed."""

    def __init__(
        self,
        store: Store,
        tiles: TileReader,
        sequencer: Sequencer,
        key: NoteKey,
        sign: Sign,
        file: Path,
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
        self._cut = asyncio.Condition()

    @property
    def newest(self) -> StoredCheckpoint | None:
        return self._newest

    async def compare(self) -> str | None:
        """What is wrong with the log, compared with the checkpoint in the file; None when it extends it.

        A restored backup or a failover that lost commits is behind; a log that was rewritten has another root.
        """
        self._newest = await self._store.newest_checkpoint()
        if not self._file.exists():
            if self._newest is None:
                return None
            return f"the checkpoint file {self._file.name} is missing while the log has checkpoints"
        try:
            kept = Checkpoint.from_text(open_note(self._file.read_text(encoding="utf-8"), [self._key]))
        except (WalletError, UnicodeDecodeError):
            return f"the checkpoint file {self._file.name} is not signed by this log's key"
        size = await self._store.size()
        if size < kept.tree_size:
            return f"the log has {size} entries and its last checkpoint {kept.tree_size}: commits were lost"
        if await self._tiles.root(kept.tree_size) != kept.root_hash:
            return f"the log's root at {kept.tree_size} entries is not the one of its last checkpoint"
        return None

    async def run(self) -> None:
        """Cut whenever the log has grown, until cancelled."""
        while True:
            await self._sequencer.grown.wait()
            self._sequencer.grown.clear()
            try:
                await self.cut()
            except WalletError as error:
                _log.warning("no checkpoint could be cut", extra={"reason": error.reason.name})
                self._sequencer.grown.set()
            await asyncio.sleep(self._interval_s)

    async def cut(self) -> None:
        """(1) Sign the committed tree. (2) Keep it in the file. (3) Publish it in the database."""
        head = self._sequencer.head
        if head is None or self._sequencer.refusal:
            return
        size = await self._store.size()
        if self._newest is not None and size <= self._newest.tree_size:
            return
        root = await self._tiles.root(size)
        checkpoint = Checkpoint(self._key.name, size, root)
        signature = await self._sign(checkpoint.text.encode())
        note = sign_note(checkpoint.text, self._key, lambda _: signature)
        # File before row: whatever was published is in the file, so a lost commit shows.
        await asyncio.to_thread(_replace, self._file, note)
        stored = StoredCheckpoint(size, root, note)
        await self._store.add_checkpoint(stored)
        async with self._cut:
            self._newest = stored
            self._cut.notify_all()

    async def wait_for(self, tree_size: int, timeout_s: float) -> StoredCheckpoint | None:
        """The newest checkpoint once it covers `tree_size` entries; None if it does not in time."""
        try:
            async with asyncio.timeout(timeout_s), self._cut:
                await self._cut.wait_for(lambda: self._newest is not None and self._newest.tree_size >= tree_size)
        except TimeoutError:
            return None
        return self._newest


def _replace(path: Path, text: str) -> None:
    """Replace a file so that a crash leaves the old one or the new one, on disk."""
    temporary = path.with_suffix(".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
