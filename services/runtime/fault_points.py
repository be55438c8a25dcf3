"""Points at which the crash harness makes a process die: before and after every durable write and every call out.

They stand where all of these pass (the database, the channels to peers, the requests to nodes, the lock, the token's
pipe), so no step of the domain can be without one. Off unless WALLET_FAULT_DIR names a directory, and never in
production. There, per service: `<service>.seen` lists the points that were reached, one a line; a file
`<service>.armed` holds the name of one, and the first process of the service that reaches it takes the file away and is
killed as by SIGKILL, on the spot.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from pathlib import Path
from types import FrameType

_ENVIRONMENT = "WALLET_FAULT_DIR"
# The frames between a durable write and the method that it belongs to.
_PLUMBING = ("services.runtime.", "contextlib", "sqlalchemy.", "asyncio.")


class _Points:
    def __init__(self, directory: Path, service: str) -> None:
        self._armed = directory / f"{service}.armed"
        self._seen_file = directory / f"{service}.seen"
        self._seen: set[str] = set()

    def reach(self, name: str) -> None:
        if name not in self._seen:
            self._seen.add(name)
            with self._seen_file.open("a", encoding="utf-8") as seen:
                seen.write(name + "\n")
        try:
            if self._armed.read_text(encoding="utf-8") != name:
                return
            # Of several replicas, one: the file can be taken away once.
            self._armed.unlink()
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


_points: _Points | None = None


def prepare(service: str, env: str) -> None:
    """Switch the points on where the environment says so.

    Raises:
        RuntimeError: it says so in production.
    """
    global _points
    directory = os.environ.get(_ENVIRONMENT)
    if not directory:
        return
    if env == "production":
        raise RuntimeError(f"{_ENVIRONMENT} is for the crash harness and is refused where WALLET_ENV=production")
    _points = _Points(Path(directory), service)


def before(kind: str, what: str | None = None) -> None:
    """The process is about to write or call; `what` defaults to the method of the domain that does."""
    if _points is not None:
        _points.reach(f"before {kind} {what or _caller()}")


def after(kind: str, what: str | None = None) -> None:
    """It has written, or has the answer, and has done nothing with that yet."""
    if _points is not None:
        _points.reach(f"after {kind} {what or _caller()}")


def _caller() -> str:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        # A store's own transaction block is a generator, a step further down than the method that opened it.
        if not module.startswith(_PLUMBING) and not frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR:
            return f"{module.removeprefix('services.')}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "start"
