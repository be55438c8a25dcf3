"""What a replica knows of the log's past, apart from the database: so a restored or forked database is noticed.

docs/adr/0009-a-memory-for-each-replica-of-the-log.md says what each rule is for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Protocol

from services.core.errors import Reason, WalletError
from services.core.notes import Checkpoint, NoteKey
from services.evidence.checkpoint_file import CheckpointFile, read_checkpoint
from services.evidence.store import LogHead, Store
from services.evidence.tiles import TileReader

_log = logging.getLogger(__name__)


class SigningKey(Protocol):
    @property
    def note_key(self) -> NoteKey: ...

    def sign(self, text: bytes) -> Awaitable[bytes]: ...

    def held(self) -> Awaitable[bool]: ...


class AskedHolder(Protocol):
    def checkpoint(self) -> Awaitable[str | None]: ...


class Memory:
    """The newest checkpoint, in a file of this replica's own or of all replicas, and in this process.

    `holder` is whom to ask without a file; None where nobody is asked.
    """

    def __init__(
        self, store: Store, tiles: TileReader, key: SigningKey, file: CheckpointFile, holder: AskedHolder | None
    ) -> None:
        self._store = store
        self._tiles = tiles
        self._key = key
        self._file = file
        self._holder = holder
        self._kept: Checkpoint | None = None

    async def unfit(self) -> str | None:
        """Why this replica may not take over a log that nobody holds, one sentence; None when it may.

        Raises:
            WalletError: the database's errors, and the token's.
        """
        if not await self._key.held():
            return "the token does not hold the key that signs this log's checkpoints"
        if self._file.exists():
            try:
                kept = self._file.read()
            except OSError as error:
                return f"the checkpoint file {self._file.name} cannot be read: {error.strerror}"
            return None if kept else f"the checkpoint file {self._file.name} is not signed by this log's key"
        published = await self._store.newest_checkpoint()
        if published is None:
            return None
        return f"the checkpoint file {self._file.name} is missing while the log has checkpoints"

    async def compare(self, head: LogHead) -> str | None:
        """What is wrong with the log as it was taken over, one sentence; None when it is the one that we know.

        A restored backup or a failover that lost commits is behind the newest checkpoint; a log that was rewritten has
        another root. Both can happen while this process runs.
        """
        self._tiles.forget()
        if await self._tiles.root(head.committed) != head.edge.frontier.root():
            return "the log's entries do not hash to its head"
        if cause := await self.unfit():
            return cause
        known = [self._file.read() if self._file.exists() else None, self._kept]
        if (published := await self._store.newest_checkpoint()) is not None:
            checkpoint = read_checkpoint(published.note, self._key.note_key)
            if checkpoint is None:
                return "the log's checkpoints are not signed by its key, or have another origin"
            known.append(checkpoint)
        for one in known:
            if one is None:
                continue
            if head.committed < one.tree_size:
                size, last = head.committed, one.tree_size
                return f"the log has {size} entries and its last checkpoint {last}: commits were lost"
            if await self._tiles.root(one.tree_size) != one.root_hash:
                return f"the log's root at {one.tree_size} entries is not the one of its last checkpoint"
        return None

    async def keep(self, checkpoint: Checkpoint, note: str) -> None:
        """Remember a checkpoint that is known to extend the last. Raises OSError when the file cannot be written."""
        await asyncio.to_thread(self._file.keep, checkpoint, note)
        self._kept = checkpoint

    async def follow(self, checkpoint: Checkpoint, note: str) -> None:
        """As a standby, remember what the holder has published, once it is seen to extend what is remembered here.

        Raises:
            WalletError: EVIDENCE_UNAVAILABLE, it does not; the database's errors.
        """
        if not self._file.exists():
            await self._learn()
            return
        kept = self._file.read()
        # A file that is ahead belongs to all replicas, or the database has lost commits: whoever takes over compares.
        if kept is None or kept.tree_size >= checkpoint.tree_size:
            return
        if not (await self._holds(kept) and await self._holds(checkpoint)):
            # What was read may be of another database than the one of the next time.
            self._tiles.forget()
            raise WalletError(
                Reason.EVIDENCE_UNAVAILABLE, f"the log does not extend the checkpoint in the file {self._file.name}"
            )
        await self.keep(checkpoint, note)

    async def _learn(self) -> None:
        """Without any past, believe the replica that appends: it has one. The database alone is not believed."""
        note = await self._holder.checkpoint() if self._holder is not None else None
        checkpoint = read_checkpoint(note, self._key.note_key) if note is not None else None
        if note is None or checkpoint is None or not await self._holds(checkpoint):
            return
        await self.keep(checkpoint, note)
        _log.warning("no checkpoint file: learnt from the replica that appends", extra=_figures(checkpoint))

    async def adopt(self) -> Checkpoint:
        """Take the newest checkpoint in the database for the past, at an operator's word.

        Raises:
            WalletError: EVIDENCE_UNAVAILABLE, saying why there is nothing to adopt; the database's errors.
        """
        if self._file.exists():
            raise WalletError(Reason.EVIDENCE_UNAVAILABLE, f"there is a checkpoint file {self._file.name}")
        published = await self._store.newest_checkpoint()
        checkpoint = read_checkpoint(published.note, self._key.note_key) if published is not None else None
        if published is None or checkpoint is None or not await self._holds(checkpoint):
            raise WalletError(Reason.EVIDENCE_UNAVAILABLE, "the log has no checkpoint that its key has signed")
        await self.keep(checkpoint, published.note)
        return checkpoint

    async def _holds(self, checkpoint: Checkpoint) -> bool:
        """Whether the log in the database is, or extends, the one of the checkpoint."""
        try:
            return await self._tiles.root(checkpoint.tree_size) == checkpoint.root_hash
        except WalletError as error:
            if error.reason is not Reason.NOT_FOUND:
                raise
            return False


def _figures(checkpoint: Checkpoint) -> dict[str, object]:
    return {"tree_size": checkpoint.tree_size, "root_hash": checkpoint.root_hash.hex()}
