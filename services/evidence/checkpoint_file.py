"""The newest checkpoint in a file outside the database: what a restored backup cannot take back."""

from __future__ import annotations

import os
from pathlib import Path

from services.core.errors import WalletError
from services.core.notes import Checkpoint, NoteKey, open_note


class CheckpointFile:
    def __init__(self, path: Path, key: NoteKey) -> None:
        self._path = path
        self._key = key

    @property
    def name(self) -> str:
        return self._path.name

    def exists(self) -> bool:
        return self._path.exists()

    def read(self) -> Checkpoint | None:
        """The checkpoint that is kept; None if the file holds none that this log's key signed."""
        try:
            return read_checkpoint(self._path.read_text(encoding="utf-8"), self._key)
        except UnicodeDecodeError:
            return None

    def keep(self, checkpoint: Checkpoint, note: str) -> None:
        """Replace what is kept, unless that is ahead already. A crash leaves the old one or the new one, on disk.

        Raises:
            OSError: it could not be written.
        """
        # A sequencer that was paused while another went on, with the same file, does not take it back.
        if self.exists() and (kept := self.read()) is not None and kept.tree_size >= checkpoint.tree_size:
            return
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(note)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def read_checkpoint(note: str, key: NoteKey) -> Checkpoint | None:
    """The checkpoint of a note, if `key` signed it and is its origin."""
    try:
        checkpoint = Checkpoint.from_text(open_note(note, [key]))
    except WalletError:
        return None
    return checkpoint if checkpoint.origin == key.name else None
