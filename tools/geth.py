"""Where a geth is, for the tests of what anvil does not emulate: `python -m tools.geth` prints its path.

WALLET_GETH, then PATH, then build/; else it is built from its Go module, by the Go that is here, into build/. That
takes two to three minutes, once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools.go_module import BuildFailed, GoProgram, build, find_go

_PROGRAM = GoProgram("github.com/ethereum/go-ethereum", "v1.17.10", "./cmd/geth")
_OLDEST = (1, 14)
_OLDEST_GO = (1, 25)
_BUILT = Path(__file__).resolve().parents[1] / "build" / "geth" / _PROGRAM.version / "geth"


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
        try:
            build(_go(), _PROGRAM, _BUILT)
        except BuildFailed as failure:
            raise GethMissing(f"geth {_PROGRAM.version} cannot be built: {failure}") from None
    return _BUILT


def _version_of(binary: str) -> tuple[int, int] | None:
    try:
        said = subprocess.run([binary, "version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"^Version: (\d+)\.(\d+)", said, re.MULTILINE)
    return (int(version[1]), int(version[2])) if version else None


def _go() -> str:
    go = find_go(_OLDEST_GO)
    if go is None:
        raise GethMissing(
            f"geth {_text(_OLDEST)} or newer is not on this machine, nor Go {_text(_OLDEST_GO)} or newer to build it "
            "(Debian's golang package is older). Either install geth and put it on the PATH, or set WALLET_GETH to it; "
            "or unpack the archive of go.dev/dl for linux-amd64 to /usr/local/go"
        )
    return go


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    try:
        print(geth())
    except GethMissing as missing:
        sys.exit(f"geth: {missing}")
