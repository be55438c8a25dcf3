"""CPU time and memory of a stack's processes, each with its children."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import psutil

from tools.stack.stack import Stack

# The wallet itself: not the store of its spans, and not what it stands on.
WALLET = ("gateway", "keys", "txbuilder", "signer", "broadcaster", "evidence")


def cpu_seconds(stack: Stack) -> dict[str, float]:
    """User and system time since each process started, by process name; ended children that were waited for count."""
    return {name: sum(_cpu(process) for process in _tree(pid)) for name, pid in _pids(stack).items()}


def cpu_between(before: Mapping[str, float], after: Mapping[str, float], names: Iterable[str] = WALLET) -> float:
    return sum(after[name] - before[name] for name in names)


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
    return {process["service"]: process["pid"] for process in stack.record["processes"]}


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
