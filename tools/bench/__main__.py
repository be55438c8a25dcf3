"""`python -m tools.bench [NAMES…] [--quick]`"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import aiohttp
import typer
import uvloop
from rich.console import Console

from services.core.errors import WalletError
from tools.bench.effort import FULL, QUICK
from tools.bench.figures import TARGETS
from tools.bench.machine import describe_commit, describe_machine
from tools.bench.measures import MEASURES, run_measures
from tools.bench.suite import BenchFailed
from tools.stack.processes import StackError

# Where nobody looks, as in a file, lines are as long as they like to be.
_CONSOLE = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
_BUSY_LOAD = 1.0
OUTPUT = Path("build") / "bench.json"


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(MEASURES)}; all if none is named")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="two minutes: does the bench work?")] = False,
    output: Annotated[Path, typer.Option(help="where the figures go")] = OUTPUT,
) -> None:
    """Measure the suite on this machine."""
    chosen = names or list(MEASURES)
    if unknown := set(chosen) - set(MEASURES):
        raise typer.BadParameter(f"no such measure: {', '.join(sorted(unknown))}")
    at, started = datetime.now(UTC), time.monotonic()
    machine, commit = describe_machine(), describe_commit()
    load = machine["load_average_at_start"][0]
    _CONSOLE.print(f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, load average {load:g}")
    if load > _BUSY_LOAD:
        _CONSOLE.print("[yellow]this machine is busy with something else: the figures will say so too[/yellow]")
    figures = uvloop.run(run_measures(chosen, Path("build") / "bench", QUICK if quick else FULL, _say(started)))
    document = {
        "format": "goldenlink.bench.v1",
        "at": at.isoformat(timespec="seconds"),
        "quick": quick,
        "seconds": round(time.monotonic() - started, 1),
        "commit": commit,
        "machine": machine,
        "figures": figures.values,
        "targets": {name: str(target) for name, target in TARGETS.items()},
        "samples": figures.samples,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    _CONSOLE.print(figures.table())
    if "memory_bytes" in figures.samples:
        _CONSOLE.print(figures.memory_table())
    _CONSOLE.print(f"every figure and the samples behind it: {output}")


def _say(started: float) -> Callable[[str], None]:
    return lambda what: _CONSOLE.print(f"[dim]{time.monotonic() - started:6.1f} s[/dim]  {what}")


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


if __name__ == "__main__":
    try:
        typer.run(main)
    except* (BenchFailed, StackError, WalletError, aiohttp.ClientError, TimeoutError) as failures:
        # Several clients at once fail for one cause: it is told once.
        for failure in sorted({repr(leaf) if not str(leaf) else str(leaf) for leaf in _leaves(failures)}):
            print(f"bench: {failure}", file=sys.stderr)
        sys.exit(1)
