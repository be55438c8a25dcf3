"""Asks the verifier, and says what a test expects of its answer."""

import json

from tests.unit.verify import forge
from tools.verify import Report, verify_bundle


def verdict(bundle: object, trust: object = None, state: str | None = None) -> Report:
    """The report on parsed JSON (or bytes as they are). A check that failed by an unforeseen exception is a bug."""
    raw = [
        part if isinstance(part, bytes) else json.dumps(part).encode()
        for part in (bundle, forge.trust() if trust is None else trust)
    ]
    report = verify_bundle(raw[0], raw[1], state)
    assert [check.number for check in report.checks] == list(range(1, 13))
    assert not [c for c in report.checks if c.detail.startswith("not understood")], report.checks
    return report


def link_verdict(drafts: list[forge.Draft], state: str | None = None, trust: object = None) -> Report:
    return verdict(forge.seal(drafts), trust, state)


def failed(report: Report) -> list[int]:
    """The numbers of the checks that failed of themselves."""
    return [c.number for c in report.checks if not c.ok and not c.detail.startswith("not reached")]


def why(report: Report) -> str:
    return "; ".join(c.detail for c in report.checks if not c.ok and not c.detail.startswith("not reached"))
