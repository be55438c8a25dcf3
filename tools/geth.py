"""Where a geth is, for the tests of what anvil does not emulate: `python -m tools.geth` prints its path.

WALLET_GETH, then PATH, then build/; else it is built from its Go module, by the Go that is here, into build/. That
takes two to three minutes, once.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

_MODULE = "github.com/ethereum/go-ethereum"
_VERSION = "v1.17.10"
_OLDEST = (1, 14)
_OLDEST_GO = (1, 25)
_BUILT = Path(__file__).resolve().parents[1] / "build" / "geth" / _VERSION / "geth"
_BUILD_TIMEOUT_S = 1_200.0


class GethMissing(Exception):
    """There is none, and none can be built here; the text says what to install."""


def geth() -> Path:
    """The path of a geth of version 1.14 or newer.

    Raises:
        GethMissing: naming what to install.
    """
    if configured := os.environ.get("WALLET_GETH"):
        version = _version_of(configured)
        if version is None or version < _OLDEST:
            raise GethMissing(f"WALLET_GETH names no geth of version {_text(_OLDEST)} or newer")
        return Path(configured)
    found = shutil.which("geth")
    if found is not None and (_version_of(found) or (0, 0)) >= _OLDEST:
        return Path(found)
    if not _BUILT.exists():
        _build()
    return _BUILT


def _version_of(binary: str) -> tuple[int, int] | None:
    try:
        said = subprocess.run([binary, "version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"^Version: (\d+)\.(\d+)", said, re.MULTILINE)
    return (int(version[1]), int(version[2])) if version else None


def _build() -> None:
    go = _go()
    _BUILT.parent.mkdir(parents=True, exist_ok=True)
    with (_BUILT.parent / "lock").open("w") as lock:
        # Two test runs at once: one builds, the other waits.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _BUILT.exists():
            return
        print(f"building geth {_VERSION} from its Go module; this takes a few minutes, once", file=sys.stderr)
        try:
            # Within the module's own directory its go.mod and go.sum pin everything.
            told = _run([go, "mod", "download", "-json", f"{_MODULE}@{_VERSION}"], _BUILT.parent)
            unfinished = _BUILT.with_name("geth.unfinished")
            source = Path(json.loads(told)["Dir"])
            _run([go, "build", "-trimpath", "-ldflags=-s -w", "-o", str(unfinished), "./cmd/geth"], source)
        except (OSError, subprocess.SubprocessError) as error:
            cause = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            raise GethMissing(f"geth {_VERSION} cannot be built: {' '.join(cause)}") from None
        unfinished.rename(_BUILT)


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


def _go() -> str:
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and (_go_version(candidate) or (0, 0)) >= _OLDEST_GO:
            return candidate
    raise GethMissing(
        f"geth {_text(_OLDEST)} or newer is not on this machine, nor Go {_text(_OLDEST_GO)} or newer to build it "
        "(Debian's golang package is older). Either install geth and put it on the PATH, or set WALLET_GETH to it; or "
        "unpack the archive of go.dev/dl for linux-amd64 to /usr/local/go"
    )


def _go_version(go: str) -> tuple[int, int] | None:
    try:
        said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.match(r"go(\d+)\.(\d+)", said)
    return (int(version[1]), int(version[2])) if version else None


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    try:
        print(geth())
    except GethMissing as missing:
        sys.exit(f"geth: {missing}")
