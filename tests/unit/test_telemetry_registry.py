"""The registry of metrics: OpenTelemetry's rules for names, and no attribute that could name somebody."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GROUPS: list[dict[str, Any]] = yaml.safe_load((ROOT / "telemetry" / "registry.yaml").read_text(encoding="utf-8"))[
    "groups"
]
METRICS = [group for group in GROUPS if group["type"] == "metric"]
ATTRIBUTES = {
    attribute["id"] for group in GROUPS if group["type"] == "attribute_group" for attribute in group["attributes"]
}
DEFINING = {"services/runtime/metric_names.py", "services/runtime/metrics.py"}
# Of few values, and about no one: what a metric may be split by.
ALLOWED = {
    "wallet.signature.algorithm",
    "wallet.signature.status",
    "wallet.chain.id",
    "wallet.node.name",
    "wallet.node.refusal",
    "wallet.stall",
    "wallet.state",
    "rpc.method",
    "error.type",
}


@pytest.mark.parametrize("metric", METRICS, ids=[metric["metric_name"] for metric in METRICS])
def test_a_metric_is_named_as_opentelemetry_would(metric: dict[str, Any]) -> None:
    name = metric["metric_name"]
    assert metric["id"] == f"metric.{name}"
    # Source: semantic conventions, "Naming": lower case, dots between namespaces; the unit is told beside the name.
    assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*", name)
    assert not re.search(r"total|seconds|bytes|_ms\b", name)
    assert metric["instrument"] in {"counter", "updowncounter", "gauge", "histogram"}
    assert metric["unit"] in {"s", "By", "1"} or re.fullmatch(r"\{[a-z]+\}", metric["unit"])
    assert metric["instrument"] != "histogram" or metric["unit"] == "s"


@pytest.mark.parametrize("metric", METRICS, ids=[metric["metric_name"] for metric in METRICS])
def test_a_metric_is_split_by_nothing_that_names_somebody(metric: dict[str, Any]) -> None:
    used = {attribute["ref"] for attribute in metric["attributes"]}
    assert used <= ATTRIBUTES
    assert used <= ALLOWED


def test_names_are_those_of_one_thing() -> None:
    names = [metric["metric_name"] for metric in METRICS]
    assert len(names) == len(set(names))
    # Prometheus knows no dots: two names must not become one there.
    assert len({re.sub(r"[^a-z0-9]+", "_", name) for name in names}) == len(names)


@pytest.mark.parametrize("metric", METRICS, ids=[metric["metric_name"] for metric in METRICS])
def test_every_metric_is_measured_somewhere(metric: dict[str, Any]) -> None:
    constant = metric["metric_name"].upper().replace(".", "_")
    sources = [path for path in (ROOT / "services").rglob("*.py") if path.relative_to(ROOT).as_posix() not in DEFINING]
    assert any(re.search(rf"\b{constant}\b", path.read_text(encoding="utf-8")) for path in sources)
