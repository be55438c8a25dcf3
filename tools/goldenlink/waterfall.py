"""A trace as a waterfall in the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

_BAR_WIDTH = 20


@dataclass
class Span:
    name: str
    service: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: dict[str, Any]
    children: list[Span] = field(default_factory=list)


def read_spans(document: dict[str, Any]) -> list[Span]:
    """The spans of an OTLP/JSON TracesData document, by start time."""
    spans = []
    for resource in document["resourceSpans"]:
        names = {one["key"]: one["value"] for one in resource.get("resource", {}).get("attributes", [])}
        service = names.get("service.name", {}).get("stringValue", "?")
        for scope in resource.get("scopeSpans", []):
            for span in scope.get("spans", []):
                spans.append(
                    Span(
                        span["name"],
                        service,
                        span["spanId"],
                        span.get("parentSpanId", ""),
                        int(span["startTimeUnixNano"]),
                        int(span["endTimeUnixNano"]),
                        span.get("status", {}).get("code") == 2,
                        {one["key"]: next(iter(one["value"].values()), None) for one in span.get("attributes", [])},
                    )
                )
    return sorted(spans, key=lambda span: span.start_ns)


def as_forest(spans: list[Span]) -> list[Span]:
    """Roots with their children; a span whose parent is not stored (the caller's own, say) is a root."""
    by_id = {span.span_id: span for span in spans}
    roots: list[Span] = []
    for span in spans:
        parent = by_id.get(span.parent_id)
        (parent.children if parent is not None else roots).append(span)
    return roots


def waterfall(spans: list[Span]) -> Table:
    """One row a span: service, name indented by depth, a bar on the trace's time, its duration."""
    begin = min(span.start_ns for span in spans)
    length = max(max(span.end_ns for span in spans) - begin, 1)
    table = Table(box=None, pad_edge=False, title=f"{len(spans)} spans, {length / 1e6:.1f} ms", title_justify="left")
    table.add_column("service", style="cyan", no_wrap=True)
    table.add_column("span", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("ms", justify="right", style="dim", no_wrap=True)

    def add(span: Span, depth: int) -> None:
        first = (span.start_ns - begin) * _BAR_WIDTH // length
        width = max(1, (span.end_ns - span.start_ns) * _BAR_WIDTH // length)
        bar = Text(" " * first + "━" * min(width, _BAR_WIDTH - first + 1), "red" if span.failed else "green")
        name = Text("  " * depth + span.name.removeprefix("wallet.v1."), "red" if span.failed else "")
        if span.failed and span.attributes.get("error.type"):
            name.append(f"  {span.attributes['error.type']}", "red")
        table.add_row(span.service, name, bar, f"{(span.end_ns - span.start_ns) / 1e6:.1f}")
        for child in span.children:
            add(child, depth + 1)

    for root in as_forest(spans):
        add(root, 0)
    return table
