"""The spool: a file of one process, in which spans outlive it until a collector has acknowledged them.

Its owner holds a lock (flock) on it for as long as it lives. Whoever gets the lock of a file has found a dead process's
and owns it from then on: it sends what is in there and removes it. docs/adr/0011-a-spool-for-spans-of-signatures.md.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from services.runtime.span_frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, encode_frame, first_frames, next_beginning

_SUFFIX, _NEXT_SUFFIX = ".spool", ".next"
_READ_BYTES = HEADER_BYTES + MAX_PAYLOAD_BYTES
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Chunk(NamedTuple):
    """What is sent at once: a serialised ExportTraceServiceRequest."""

    payload: bytes
    spans: int
    end: int  # what to acknowledge it by


class SpanSpool:
    """One thread appends and syncs, another reads and acknowledges.

    Offsets count from the first byte ever written: the file begins anew whenever all of it is acknowledged.
    """

    def __init__(self, path: Path, descriptor: int, max_bytes: int, on_torn: Callable[[int], None]) -> None:
        self._path = path
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._on_torn = on_torn
        self._lock = threading.Lock()
        self._begin = 0  # of the file
        self._acknowledged = 0
        self._end = os.fstat(descriptor).st_size

    @classmethod
    def create(cls, directory: Path, service: str, max_bytes: int, on_torn: Callable[[int], None]) -> SpanSpool:
        """Raises OSError when the directory cannot be made or written."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            path = directory / f"{service}.{secrets.token_hex(8)}{_SUFFIX}"
            descriptor = os.open(path, _NEW, 0o600)
            # Between the two lines it may be taken for a dead process's, and removed.
            if _lock(descriptor):
                _sync_directory(directory)
                return cls(path, descriptor, max_bytes, on_torn)
            os.close(descriptor)

    @classmethod
    def adopt(cls, path: Path, on_torn: Callable[[int], None]) -> SpanSpool | None:
        """A dead process's spool; None when its process lives, or another one has it."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if not _lock(descriptor):
            os.close(descriptor)
            return None
        return cls(path, descriptor, 0, on_torn)

    @property
    def size_bytes(self) -> int:
        """What is not yet acknowledged."""
        return self._end - self._acknowledged

    def append(self, payload: bytes, spans: int) -> bool:
        """Write one frame; False when the spool is full.

        Raises:
            OSError: nothing of it was written, or what was will be written over.
        """
        frame = encode_frame(payload, spans)
        with self._lock:
            if self._end - self._begin + len(frame) > self._max_bytes and not self._has_room_made(len(frame)):
                return False
            place = self._end - self._begin
            written = os.pwrite(self._descriptor, frame, place)
            if written < len(frame):
                os.ftruncate(self._descriptor, place)
                raise OSError(f"{written} of {len(frame)} bytes were written: the disk is full")
            self._end += written
            return True

    def sync(self) -> None:
        """Raises OSError. What was appended before then outlives the machine as well, not the process alone."""
        os.fdatasync(self._descriptor)

    def read(self) -> Chunk | None:
        """The first frames that are not acknowledged; None when there are none. Damaged ones are passed over."""
        with self._lock:
            while self._acknowledged < self._end:
                start = self._acknowledged
                size = min(_READ_BYTES, self._end - start)
                data = os.pread(self._descriptor, size, start - self._begin)
                frames = first_frames(data)
                if frames.used:
                    return Chunk(frames.payload, frames.spans, start + frames.used)
                # A crash tore it, or the disk did not keep it.
                torn = next_beginning(data) if data else size
                self._on_torn(torn)
                self._acknowledged += torn
            self._begin_anew()
            return None

    def acknowledge(self, end: int) -> None:
        with self._lock:
            self._acknowledged = end
            self._begin_anew()

    def close(self) -> None:
        """Remove the file if all is acknowledged; else another process finds it."""
        with self._lock:
            if self._acknowledged >= self._end:
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)

    def _begin_anew(self) -> None:
        if self._acknowledged >= self._end > self._begin:
            os.ftruncate(self._descriptor, 0)
            self._begin = self._acknowledged = self._end

    def _has_room_made(self, needed: int) -> bool:
        """Copy what is not acknowledged into a new file in the place of this one, if that halves it at least."""
        kept = self._end - self._acknowledged
        if kept > self._max_bytes // 2 or kept + needed > self._max_bytes:
            return False
        path = self._path.with_suffix(_NEXT_SUFFIX)
        try:
            descriptor = os.open(path, _NEW, 0o600)
        except OSError:
            return False
        try:
            # Locked before it has the name that others look for: it is never without an owner.
            if not _lock(descriptor):
                raise OSError("taken for a dead process's")
            for offset in range(0, kept, _READ_BYTES):
                data = os.pread(
                    self._descriptor, min(_READ_BYTES, kept - offset), self._acknowledged - self._begin + offset
                )
                if os.write(descriptor, data) < len(data):
                    raise OSError("the disk is full")
            os.fsync(descriptor)
            os.rename(path, self._path)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return False
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._begin = self._acknowledged
        return True


class MemorySpool:
    """The same where no file can be written: what is in here ends with the process."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._frames: list[tuple[bytes, int]] = []
        self._first = 0  # frames acknowledged, ever
        self.size_bytes = 0

    def append(self, payload: bytes, spans: int) -> bool:
        """False when it is full."""
        with self._lock:
            if self.size_bytes + len(payload) > self._max_bytes:
                return False
            self._frames.append((payload, spans))
            self.size_bytes += len(payload)
            return True

    def read(self) -> Chunk | None:
        with self._lock:
            if not self._frames:
                return None
            size = taken = 0
            for payload, _ in self._frames:
                if taken and size + len(payload) > MAX_PAYLOAD_BYTES:
                    break
                size, taken = size + len(payload), taken + 1
            frames = self._frames[:taken]
        return Chunk(b"".join(payload for payload, _ in frames), sum(spans for _, spans in frames), self._first + taken)

    def acknowledge(self, end: int) -> None:
        with self._lock:
            done = end - self._first
            self.size_bytes -= sum(len(payload) for payload, _ in self._frames[:done])
            del self._frames[:done]
            self._first = end


def spools_of(directory: Path, service: str) -> Iterator[Path]:
    """The spools of a service's processes, dead or alive. What compaction left unfinished is removed on the way."""
    for path in sorted(directory.glob(f"{service}.*")):
        if path.suffix == _SUFFIX:
            yield path
        elif path.suffix == _NEXT_SUFFIX:
            with _locked(path) as is_dead:
                if is_dead:
                    path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the file is ours now: nobody holds its lock, and nobody has removed it meanwhile."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink > 0


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
