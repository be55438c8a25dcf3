"""`python -m tools.bench.compare A.json B.json`: the figures of two runs side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from tools.bench.figures import shown

_CONSOLE = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def main(first: Path, second: Path) -> None:
    """The figures that both runs have, with the ratio of the second to the first."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in (first, second)]
    for name, run in zip("AB", runs, strict=True):
        _CONSOLE.print(f"{name}: {_described(run)}")
    _CONSOLE.print(table(*(run["figures"] for run in runs)))


def table(first: Mapping[str, float], second: Mapping[str, float]) -> Table:
    shared = Table("figure", title_justify="left")
    for column in ("A", "B", "B / A"):
        shared.add_column(column, justify="right", no_wrap=True)
    for name, before in first.items():
        if name in second:
            ratio = f"{second[name] / before:.3f}" if before else "-"
            shared.add_row(name, shown(before), shown(second[name]), ratio)
    return shared


def _described(run: Mapping[str, Any]) -> str:
    load = run["machine"]["load_average_at_start"][0]
    return f"{run['at']}, commit {run['commit']}, {'quick, ' if run['quick'] else ''}load average {load:g}"


if __name__ == "__main__":
    typer.run(main)
