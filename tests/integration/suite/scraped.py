"""The metrics of a running suite, as Prometheus takes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpx
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.integration.suite.running_suite import Suite

_FORMATS = {
    "OpenMetrics": "application/openmetrics-text; version=1.0.0",
    "Prometheus": "text/plain; version=0.0.4",
}


def scrape(suite: Suite, process: str, accept: str = _FORMATS["OpenMetrics"]) -> str:
    url = suite.stack.record["metrics_urls"][process]
    reply = httpx.get(url, headers={"Accept": accept}, trust_env=False).raise_for_status()
    assert reply.headers["content-type"].startswith(accept)
    return reply.text


def all_metrics(suite: Suite) -> dict[tuple[str, str], str]:
    """(process, format) → text."""
    return {
        (process, name): scrape(suite, process, accept)
        for process in suite.stack.record["metrics_urls"]
        for name, accept in _FORMATS.items()
    }


class Scraped:
    """What one process told at one moment."""

    def __init__(self, suite: Suite, process: str) -> None:
        self._families = {one.name: one for one in text_string_to_metric_families(scrape(suite, process))}

    def samples(self, name: str, **labels: str) -> list[Any]:
        """Of this name, with at least these labels."""
        samples: Iterable[Any] = (one for family in self._families.values() for one in family.samples)
        return [one for one in samples if one.name == name and labels.items() <= one.labels.items()]

    def total(self, name: str, **labels: str) -> float:
        return sum(one.value for one in self.samples(name, **labels))

    def exemplars(self, name: str) -> list[dict[str, str]]:
        return [dict(one.exemplar.labels) for one in self.samples(name) if one.exemplar is not None]
