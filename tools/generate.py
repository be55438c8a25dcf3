"""Write what is derived: names of attributes and metrics and docs/TELEMETRY.md from the registry, docs/ERRORS.md.

`python -m tools.generate` writes; `--check` fails, naming the file, when one would change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from services.core.errors import Reason

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = ROOT / "telemetry" / "registry.yaml"


def attribute_constants(groups: list[dict[str, Any]]) -> str:
    lines = [
        '"""Span attribute names. Generated from telemetry/registry.yaml; do not edit."""',
        "",
        "from typing import Final",
        "",
    ]
    for group in _of_type(groups, "attribute_group"):
        for attribute in group["attributes"]:
            lines.append(f'{_constant(attribute["id"])}: Final = "{attribute["id"]}"')
    return "\n".join(lines) + "\n"


def metric_constants(groups: list[dict[str, Any]]) -> str:
    lines = [
        '"""What is measured. Generated from telemetry/registry.yaml; do not edit."""',
        "",
        "from typing import Final",
        "",
        "from services.runtime.measure import Measure",
        "",
    ]
    for group in _of_type(groups, "metric"):
        values = (group["metric_name"], group["instrument"], group["unit"], group["brief"])
        lines.append(f"{_constant(group['metric_name'])}: Final = Measure(")
        lines += [f"    {json.dumps(value, ensure_ascii=False)}," for value in values]
        lines.append(")")
    return "\n".join(lines) + "\n"


def _of_type(groups: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [group for group in groups if group["type"] == kind]


def _constant(name: str) -> str:
    return name.upper().replace(".", "_")


def telemetry_page(groups: list[dict[str, Any]]) -> str:
    lines = [
        "# Telemetry",
        "",
        "Generated from `telemetry/registry.yaml` by `make generate`; do not edit.",
        "",
        "Never in a span: keys, seeds, PINs, raw call data, addresses, IPs and actors in clear, a node URL's key.",
    ]
    for group in _of_type(groups, "attribute_group"):
        lines += ["", f"## {group['display_name']}", "", group["brief"], ""]
        lines += ["| attribute | type | meaning | example | stability |", "|---|---|---|---|---|"]
        for attribute in group["attributes"]:
            example = ", ".join(f"`{value}`" for value in attribute["examples"])
            row = (f"`{attribute['id']}`", attribute["type"], attribute["brief"], example, attribute["stability"])
            lines.append("| " + " | ".join(row) + " |")
    lines += ["", "## Metrics", "", "How to have them, and what others call them: [METRICS.md](METRICS.md).", ""]
    lines += ["| metric | instrument | unit | meaning | attributes | stability |", "|---|---|---|---|---|---|"]
    for group in _of_type(groups, "metric"):
        references = ", ".join(f"`{attribute['ref']}`" for attribute in group["attributes"])
        row = (f"`{group['metric_name']}`", group["instrument"], f"`{group['unit']}`", group["brief"], references)
        lines.append("| " + " | ".join((*row, group["stability"])) + " |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    lines = [
        "# Errors",
        "",
        "Generated from `services/core/errors.py` by `make generate`; do not edit.",
        "",
        "The code decides about retries: UNAVAILABLE: retry the call; ABORTED: restart the step; others: do not retry.",
        "Over HTTP the reason is the problem type `urn:goldenlink:reason:<reason>` (RFC 9457).",
        "",
        "| reason | gRPC code | meaning |",
        "|---|---|---|",
    ]
    lines += [f"| `{reason.name}` | {reason.code.name} | {reason.meaning} |" for reason in Reason]
    return "\n".join(lines) + "\n"


def generated_files() -> dict[Path, str]:
    groups = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))["groups"]
    return {
        ROOT / "services" / "runtime" / "attributes.py": attribute_constants(groups),
        ROOT / "services" / "runtime" / "metric_names.py": metric_constants(groups),
        ROOT / "docs" / "TELEMETRY.md": telemetry_page(groups),
        ROOT / "docs" / "ERRORS.md": errors_page(),
    }


def main(arguments: list[str]) -> int:
    stale = False
    for path, text in generated_files().items():
        if "--check" in arguments:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                print(f"stale: {path.relative_to(ROOT)}; run 'make generate'", file=sys.stderr)
                stale = True
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
