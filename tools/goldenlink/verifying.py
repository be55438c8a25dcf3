"""`goldenlink verify`: many bundles, each numbered check, a summary. No network."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from tools.goldenlink.exits import Exit, Failure
from tools.goldenlink.output import console
from tools.verify import MAX_FILE_BYTES, Refused, Report, Trust, load_trust, verify_bundle


def read_trust(path: Path) -> Trust:
    try:
        return load_trust(_read(path))
    except Refused as error:
        raise Failure(Exit.USAGE, f"{path}: {error}") from None


def verify_files(paths: list[Path], trust: Trust, state: str | None) -> dict[Path, Report]:
    return {path: verify_bundle(_read(path), trust, state) for path in paths}


def print_reports(reports: dict[Path, Report]) -> None:
    """Each bundle with its checks, then how many of them hold."""
    for path, report in reports.items():
        verdict = Text("accepted", "green") if report.accepted else Text("REJECTED", "bold red")
        console.print(Text.assemble((path.name, "bold"), "  ", verdict, "  ", (report.link_id or "", "dim")))
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(justify="right", width=4)
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold", style="dim")
        for check in report.checks:
            mark = Text("✓", "green") if check.ok else Text("✗", "bold red")
            table.add_row(str(check.number), mark, check.name, check.detail)
        console.print(table)
    accepted = sum(report.accepted for report in reports.values())
    style = "green" if accepted == len(reports) else "bold red"
    console.print(f"[{style}]{accepted} of {len(reports)} bundles accepted[/{style}]")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Failure(Exit.USAGE, f"{path}: {error.strerror}") from None
