"""Programs that are built from a Go module, once, by the Go that is here."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_BUILD_TIMEOUT_S = 1_200.0


class BuildFailed(Exception):
    """The module cannot be fetched or built; the text is the last line of what Go said."""


class GoProgram(NamedTuple):
    """`package` (like "./cmd/geth") of a module at a version; `linked` sets strings within it: ("path.name", value)."""

    module: str
    version: str
    package: str
    linked: Sequence[tuple[str, str]] = ()


def find_go(oldest: tuple[int, int]) -> str | None:
    """The Go on the PATH or at its usual place, if it is new enough: an older one would fetch a toolchain."""
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and (go_version(candidate) or (0, 0)) >= oldest:
            return candidate
    return None


def go_version(go: str) -> tuple[int, int] | None:
    try:
        said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.match(r"go(\d+)\.(\d+)", said)
    return (int(version[1]), int(version[2])) if version else None


def build(go: str, program: GoProgram, binary: Path) -> None:
    """Make `binary`, unless it is there; two that build at once: one does, the other waits.

    Raises:
        BuildFailed.
    """
    binary.parent.mkdir(parents=True, exist_ok=True)
    with (binary.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if binary.exists():
            return
        print(f"building {binary.name} from its Go module; this takes a few minutes, once", file=sys.stderr)
        flags = " ".join(("-s", "-w", *(f"-X {name}={value}" for name, value in program.linked)))
        unfinished = binary.with_name(f"{binary.name}.unfinished")
        try:
            # Within the module's own directory its go.mod and go.sum pin everything.
            told = _run([go, "mod", "download", "-json", f"{program.module}@{program.version}"], binary.parent)
            source = Path(json.loads(told)["Dir"])
            _run([go, "build", "-trimpath", f"-ldflags={flags}", "-o", str(unfinished), program.package], source)
        except (OSError, subprocess.SubprocessError) as error:
            cause = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            raise BuildFailed(" ".join(cause)) from None
        unfinished.rename(binary)


def _run(command: list[str], directory: Path) -> str:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local"}
    return subprocess.run(
        command,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT_S,
        check=True,
    ).stdout
