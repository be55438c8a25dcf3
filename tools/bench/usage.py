"""CPU time and memory of a stack's processes, each with its children."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from tools.stack.services import service_of
from tools.stack.stack import Stack

# The wallet itself: not the store of its spans, and not what it stands on.
_WALLET = frozenset({"gateway", "keys", "txbuilder", "signer", "broadcaster", "evidence"})


def cpu_seconds(stack: Stack) -> dict[str, float]:
    """User and system time since each process started, by its name; ended children that were waited for count."""
    return {name: sum(_cpu(process) for process in _tree(pid)) for name, pid in _pids(stack).items()}


def of_wallet(spent: Mapping[str, float]) -> float:
    """The sum over the wallet's own processes, each replica of a service, of what is told by process."""
    return sum(seconds for name, seconds in spent.items() if service_of(name) in _WALLET)


def memory_bytes(stack: Stack) -> dict[str, int]:
    """Resident set of each process, and what each of its children does not share with others."""
    return {
        name: process.memory_info().rss + sum(child.memory_full_info().uss for child in children)
        for name, pid in _pids(stack).items()
        for process, *children in [_tree(pid)]
    }


def own_cpu_seconds() -> float:
    """Of this process: the load generator's."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def _pids(stack: Stack) -> dict[str, int]:
    return {process["name"]: process["pid"] for process in stack.record["processes"]}


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        # Ended since it was listed: its parent has its times.
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)
