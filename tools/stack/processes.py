"""Processes that outlive their starter and are ended by identity, never by name.

A process writes its own record (pid, start time, boot) before it becomes what it is to be, so no crash leaves one that
nobody knows of. A pid alone is never signalled: the record's start time must match, through a pidfd.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

# Standard input is the record. `$$` is the pid that exec keeps.
_RECORD_AND_EXEC = (
    "read -r stat </proc/$$/stat && read -r boot </proc/sys/kernel/random/boot_id"
    ' && printf "%s\\n%s\\n" "$stat" "$boot" >&0 && exec "$@" </dev/null'
)
_START_TIMEOUT_S = 90.0
_POLL_S = 0.05
_LOG_TAIL_BYTES = 2_000
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StackError(Exception):
    """The stack cannot do what was asked; the message says what and why."""


@dataclass(frozen=True)
class ProcessSpec:
    """How to start a process, and how to see that it serves."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    ready: Callable[[], Awaitable[bool]]
    ports: Mapping[str, int] = field(default_factory=dict)
    # User to run as; None = ours.
    user: str | None = None
    working_directory: Path | None = None

    def named(self, name: str) -> ProcessSpec:
        """The same under another name: several of a kind beside each other."""
        return replace(self, name=name)


@dataclass(frozen=True)
class ProcessIdentity:
    """A process that cannot be mistaken for a later one with its pid."""

    pid: int
    # Clock ticks since boot (proc(5), /proc/[pid]/stat field 22).
    started_ticks: int

    @classmethod
    def from_record(cls, path: Path) -> ProcessIdentity | None:
        """None when the record is missing, not yet written, or of an earlier boot."""
        try:
            stat, boot_id = path.read_text().splitlines()
        except (OSError, ValueError):
            return None
        if boot_id != _BOOT_ID.read_text().strip():
            return None
        parsed = _parse_stat(stat)
        return cls(parsed.pid, parsed.started_ticks)

    def is_alive(self) -> bool:
        stat = _read_stat(self.pid)
        return stat is not None and stat.started_ticks == self.started_ticks and stat.state not in "ZX"


@dataclass(frozen=True)
class _Stat:
    pid: int
    state: str
    session: int
    started_ticks: int


def _parse_stat(line: str) -> _Stat:
    # The command name may hold spaces and parentheses: fields count from the last ")".
    before, _, after = line.rpartition(")")
    fields = after.split()
    return _Stat(int(before.split()[0]), fields[0], int(fields[3]), int(fields[19]))


def _read_stat(pid: int) -> _Stat | None:
    try:
        return _parse_stat(Path(f"/proc/{pid}/stat").read_text())
    except (OSError, ValueError, IndexError):
        return None


class ProcessTable:
    """The processes of one stack; their records are the files of one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Children of this very process must be reaped by it.
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, spec: ProcessSpec) -> None:
        """Start in a session of its own; output is appended to the log."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._record(spec.name).open("wb") as record, spec.log.open("ab") as log:
            child = subprocess.Popen(
                ["/bin/sh", "-c", _RECORD_AND_EXEC, "sh", *spec.command],
                stdin=record,
                stdout=log,
                stderr=log,
                env=dict(spec.environment),
                cwd=spec.working_directory,
                start_new_session=True,
                user=spec.user,
                group=spec.user,
                extra_groups=[] if spec.user is not None else None,
            )
        self._children[child.pid] = child

    async def launch(self, spec: ProcessSpec) -> None:
        """Start, and return when it serves.

        Raises:
            StackError: it ended, or does not serve in time; with the end of its log.
        """
        self.start(spec)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                while not await spec.ready():
                    if self.has_ended(spec.name):
                        raise StackError(f"{spec.name} ended while it was started:\n{log_tail(spec.log)}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise StackError(
                f"{spec.name} does not serve after {_START_TIMEOUT_S:g} s:\n{log_tail(spec.log)}"
            ) from None

    def names(self) -> list[str]:
        return sorted(path.name for path in self._directory.glob("*")) if self._directory.is_dir() else []

    def identity(self, name: str) -> ProcessIdentity | None:
        return ProcessIdentity.from_record(self._record(name))

    def is_alive(self, name: str) -> bool:
        identity = self.identity(name)
        return identity is not None and identity.is_alive()

    def has_ended(self, name: str) -> bool:
        """True once a process that was started is gone (not while its record is still being written)."""
        identity = self.identity(name)
        return identity is not None and not identity.is_alive()

    def living(self) -> list[str]:
        return [name for name in self.names() if self.is_alive(name)]

    def end(self, names: Iterable[str], *, number: signal.Signals = signal.SIGTERM, grace_s: float = 15.0) -> None:
        """Signal all, wait for each, kill what is left after `grace_s`, and end what they left in their sessions."""
        found = {name: identity for name in names if (identity := self.identity(name)) is not None}
        handles = {name: handle for name, identity in found.items() if (handle := _open(identity)) is not None}
        deadline = time.monotonic() + grace_s
        try:
            for handle in handles.values():
                _send(handle, number)
            for handle in handles.values():
                if not _wait(handle, deadline - time.monotonic()):
                    _send(handle, signal.SIGKILL)
                    _wait(handle, 10.0)
        finally:
            for handle in handles.values():
                os.close(handle)
        for name, identity in found.items():
            _kill_session(identity)
            if (child := self._children.pop(identity.pid, None)) is not None:
                child.wait()
            self._record(name).unlink(missing_ok=True)

    def _record(self, name: str) -> Path:
        return self._directory / name


def log_tail(log: Path) -> str:
    """What a failed process said last, and where the rest is."""
    try:
        end = log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        end = ""
    return f"{end.strip()}\n({log})"


def _open(identity: ProcessIdentity) -> int | None:
    """A pidfd of exactly this process; None when it has ended."""
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    # Checked after opening: from here on the handle cannot mean another process.
    if not identity.is_alive():
        os.close(handle)
        return None
    return handle


def _send(handle: int, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass


def _wait(handle: int, timeout_s: float) -> bool:
    # pidfd_open(2): a pidfd polls as readable when its process has ended.
    readable, _, _ = select.select([handle], [], [], max(timeout_s, 0.0))
    return bool(readable)


def _kill_session(leader: ProcessIdentity) -> None:
    """End children that a killed process left in its session, and wait until they are gone."""
    for _ in range(100):
        reused = _read_stat(leader.pid)
        if reused is not None and reused.started_ticks != leader.started_ticks:
            return
        stats = (_read_stat(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit())
        members = [stat for stat in stats if stat and stat.session == leader.pid and stat.state not in "ZX"]
        if not members:
            return
        for member in members:
            handle = _open(ProcessIdentity(member.pid, member.started_ticks))
            if handle is not None:
                _send(handle, signal.SIGKILL)
                _wait(handle, 1.0)
                os.close(handle)
