"""Files and directories of a stack: secrets are 0600, and what a process reads by environment is a path."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path


def write_private(path: Path, content: str | bytes) -> Path:
    """Write a file that only its owner can read, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    partial.replace(path)
    return path


def write_json(path: Path, value: object) -> Path:
    return write_private(path, json.dumps(value, indent=1) + "\n")


def new_password() -> str:
    """192 random bits as hex: safe in SQL, in URLs and in configuration files without quoting."""
    return secrets.token_hex(24)


def let_traverse(path: Path) -> None:
    """Let other users pass through the parents of `path` (the execute bit only), as PostgreSQL's user has to."""
    for parent in path.resolve().parents:
        mode = parent.stat().st_mode
        if not mode & 0o001:
            parent.chmod(mode | 0o001)
