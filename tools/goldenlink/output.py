"""Tables where people look, JSON where machines read."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def print_json(document: Any) -> None:
    """One JSON document on standard output, for a machine: never wrapped, never coloured."""
    print(json.dumps(document, indent=2))


def facts(title: str, rows: dict[str, object]) -> Table:
    """A two-column table of what is known."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None and value != "":
            table.add_row(name, str(value))
    return table
