"""A mirror of the public log: the checkpoint and its tiles, as files that any tlog-tiles client can read."""

from __future__ import annotations

from pathlib import Path

import httpx

from services.core.notes import Checkpoint
from services.core.tiles import entry_bundle, grown_tiles


def mirror_log(tiles_url: str, directory: Path) -> Checkpoint:
    """Fetch the newest checkpoint and every tile of its tree into `directory`; the checkpoint comes last."""
    with httpx.Client(base_url=tiles_url, timeout=10.0, trust_env=False) as http:
        note = _fetch(http, "checkpoint")
        checkpoint = Checkpoint.from_text(note.decode().partition("\n\n")[0] + "\n")
        for tile in grown_tiles(0, checkpoint.tree_size):
            paths = [tile.path, entry_bundle(tile).path] if tile.level == 0 else [tile.path]
            for path in paths:
                _write(directory / path, _fetch(http, path))
        _write(directory / "checkpoint", note)
        return checkpoint


def _fetch(http: httpx.Client, path: str) -> bytes:
    reply = http.get(f"/{path}")
    reply.raise_for_status()
    return reply.content


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
