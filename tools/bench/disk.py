"""What the disk under the database can do by itself."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter

# PostgreSQL's WAL page.
_BLOCK = bytes(8_192)
_SYNCS = 300
_MIN_TIME_S = 2.0


def syncs_per_second(directory: Path) -> float:
    """Appends of 8 KiB to a file in `directory`, each made durable by fdatasync."""
    path = directory / "disk-probe"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        done, started = 0, perf_counter()
        while done < _SYNCS and (elapsed := perf_counter() - started) < _MIN_TIME_S:
            os.write(descriptor, _BLOCK)
            os.fdatasync(descriptor)
            done += 1
        elapsed = perf_counter() - started
        return done / elapsed
    finally:
        os.close(descriptor)
        path.unlink()
