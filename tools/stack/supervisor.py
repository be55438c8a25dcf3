"""Ends a stack when its starter dies: the kernel then closes the pipe that is its standard input.

    python -m tools.stack.supervisor DIRECTORY

A starter whose stack shall outlive it writes RELEASE first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools.stack.shutdown import end_stack, locked

RELEASE = b"release\n"
_SOURCE_TREE = Path(__file__).resolve().parents[2]


class Supervisor:
    """The starter's side."""

    def __init__(self, directory: Path) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tools.stack.supervisor", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath},
            cwd=_SOURCE_TREE,
            # An interrupt from the terminal goes to the starter alone.
            start_new_session=True,
        )

    def release(self) -> None:
        """Let the stack live on, or, after it has been ended, let go of the supervisor."""
        try:
            self._child.communicate(RELEASE)
        except BrokenPipeError:
            self._child.wait()


def main() -> None:
    if sys.stdin.buffer.read() != RELEASE:
        directory = Path(sys.argv[1])
        with locked(directory, wait=True):
            # Twice: a process that was just being started may have written its record after the first look.
            end_stack(directory)
            end_stack(directory)


if __name__ == "__main__":
    main()
