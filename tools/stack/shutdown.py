"""Ending a stack from its directory alone: nothing that runs, no shared memory, no sockets are left."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.stack import postgres
from tools.stack.processes import ProcessTable, StackError
from tools.stack.services import STOP_STAGES, service_of


def record_file(directory: Path) -> Path:
    """`build/stack` → `build/stack.json`."""
    return directory.with_name(directory.name + ".json")


def run_directory(directory: Path) -> Path:
    """Where the processes of the stack keep their records."""
    return directory / "run"


@contextmanager
def locked(directory: Path, *, wait: bool) -> Iterator[None]:
    """Start and end exclude each other. The kernel frees the lock of a process that died.

    Raises:
        StackError: another process holds it, and `wait` is false.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(directory.name + ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError("this stack is being started or ended by another process") from None
        yield


def end_stack(directory: Path, table: ProcessTable | None = None) -> list[str]:
    """End every process, those who ask before those who answer. Logs stay. Returns the names that were alive."""
    table = table or ProcessTable(run_directory(directory))
    living = table.living()
    for stage in STOP_STAGES:
        table.end([name for name in table.names() if service_of(name) in stage])
    table.end([name for name in table.names() if name != "postgres"])
    table.end(["postgres"], number=postgres.STOP_SIGNAL)
    postgres.remove_remains(directory / "postgres")
    record_file(directory).unlink(missing_ok=True)
    return living
