"""What one metric is: its name, kind, unit (UCUM) and meaning, as telemetry/registry.yaml says."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Measure(NamedTuple):
    name: str
    instrument: Literal["counter", "updowncounter", "gauge", "histogram"]
    unit: str
    brief: str
