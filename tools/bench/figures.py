"""What was measured: flat figures with their targets, and the samples behind them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Target:
    """`at_least` or `at_most` a value."""

    at_least: float | None = None
    at_most: float | None = None

    def is_met(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


TARGETS = {
    "sign_batch_vs_bare_token": Target(at_least=0.8),
    "sign_single_p50_vs_floor": Target(at_most=1.0),
    "transfers_per_s_batch_one_account": Target(at_least=300),
    "tracing_cpu_overhead_single": Target(at_most=0.10),
    "verifier_bundles_per_s": Target(at_least=400),
}


# Of the figures that are a process's memory after the run.
MEMORY = "memory_mib_"


@dataclass
class Figures:
    values: dict[str, float] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: float, remark: str = "") -> None:
        """`remark` says how it was measured, for the table."""
        self.values[name] = round(value, 4)
        self.remarks[name] = remark

    def table(self) -> Table:
        """The figures that have a target first; memory has a table of its own."""
        table = Table(title="Golden Link, measured", title_justify="left")
        table.add_column("figure", no_wrap=True)
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("target", no_wrap=True)
        table.add_column("how", overflow="fold", style="dim")
        aimed = [name for name in TARGETS if name in self.values]
        for name in aimed:
            colour = "green" if TARGETS[name].is_met(self.values[name]) else "red"
            value = f"[{colour}]{shown(self.values[name])}[/{colour}]"
            table.add_row(name, value, str(TARGETS[name]), self.remarks[name])
        table.add_section()
        for name, number in self.values.items():
            if name not in TARGETS and not name.startswith(MEMORY):
                table.add_row(name, shown(number), "", self.remarks[name])
        return table

    def memory_table(self) -> Table:
        table = Table("process", title="Memory, MiB", title_justify="left")
        for column in ("at rest", "after the run"):
            table.add_column(column, justify="right")
        after = {name: number for name, number in self.values.items() if name.startswith(MEMORY)}
        for name, number in after.items():
            table.add_row(name.removeprefix(MEMORY), self.remarks[name], f"{number:.0f}")
        return table


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3f}".rstrip("0").rstrip(".")
