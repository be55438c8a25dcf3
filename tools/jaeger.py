"""Where the stock Jaeger of the pinned version is: `python -m tools.jaeger` prints its path.

WALLET_JAEGER, then PATH, each if it is that version; else it is built from its Go module, by the Go that is here, into
the user's cache folder, where every work tree finds it. That takes five minutes, once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools.go_module import BuildFailed, GoProgram, build, find_go

VERSION = "v2.13.0"
# The tag of a Go module tells its major version: Jaeger 2.13.0 is v1.76.0 there. A build of a module knows no tag of
# git, so it is told its version as Jaeger's own release builds are.
_MODULE = "github.com/jaegertracing/jaeger"
_PROGRAM = GoProgram(_MODULE, "v1.76.0", "./cmd/jaeger", ((f"{_MODULE}/internal/version.latestVersion", VERSION),))
_OLDEST_GO = (1, 24)


class JaegerMissing(Exception):
    """There is none, and none can be built here; the text says what to install."""


def jaeger() -> Path:
    """The path of a Jaeger of the pinned version.

    Raises:
        JaegerMissing: naming what to install.
    """
    if configured := os.environ.get("WALLET_JAEGER"):
        if not _is_pinned(configured):
            raise JaegerMissing(f"WALLET_JAEGER names no Jaeger {VERSION}")
        return Path(configured)
    found = shutil.which("jaeger")
    if found is not None and _is_pinned(found):
        return Path(found)
    binary = _cache() / "jaeger" / VERSION / "jaeger"
    if not binary.exists():
        try:
            build(_go(), _PROGRAM, binary)
        except BuildFailed as failure:
            raise JaegerMissing(f"Jaeger {VERSION} cannot be built: {failure}") from None
    return binary


def _cache() -> Path:
    # XDG Base Directory Specification: an empty variable is one that is not set.
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goldenlink"


def _is_pinned(binary: str) -> bool:
    try:
        said = subprocess.run([binary, "version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    version = re.search(r'"gitVersion":\s*"([^"]*)"', said)
    return version is not None and version[1] == VERSION


def _go() -> str:
    go = find_go(_OLDEST_GO)
    if go is None:
        raise JaegerMissing(
            f"Jaeger {VERSION} is not on this machine, nor Go {'.'.join(map(str, _OLDEST_GO))} or newer to build it "
            "(Debian's golang package is older). Either put that Jaeger on the PATH, or set WALLET_JAEGER to it; or "
            "unpack the archive of go.dev/dl for linux-amd64 to /usr/local/go"
        )
    return go


if __name__ == "__main__":
    try:
        print(jaeger())
    except JaegerMissing as missing:
        sys.exit(f"jaeger: {missing}")
