"""What people see: the tree of a link, the waterfall of a trace."""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType

from tools.goldenlink.link_tree import link_tree
from tools.goldenlink.waterfall import as_forest, read_spans, waterfall


def rendered(what: RenderableType) -> str:
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def entry(kind: str, body: dict[str, Any] | None, *, provable: bool = True) -> dict[str, Any]:
    return {"kind": kind, "index": 7, "at": "2026-01-02T03:04:05.678901Z", "body": body, "provable": provable}


def test_each_step_has_its_time_and_proof_mark() -> None:
    text = rendered(
        link_tree(
            {
                "link_id": "t-1",
                "state": "SUBMITTED",
                "trace_id": "ab" * 16,
                "entries": [
                    entry("request", {"node": "node-a", "attempt": 1, "batch": {"index": 0, "size": 50}}),
                    entry("response", None, provable=False),
                ],
            }
        )
    )
    assert "t-1  SUBMITTED" in text
    assert "✓ request    03:04:05.678 #7      to node-a, attempt 1, 1 of 50" in text
    assert "… response" in text
    assert "(erased)" in text


def test_fee_bumps_and_superseding_stand_out() -> None:
    intent = {
        "to": "0x" + "11" * 20,
        "value_wei": "0",
        "data": "0x",
        "policy": {"version": 1, "decision": "allow", "rules": []},
        "supersedes": "t-1",
    }
    link = {
        "link_id": "t-1:cancel",
        "state": "SUBMITTED",
        "trace_id": "ab" * 16,
        "entries": [entry("intent", intent), entry("intent", intent), entry("intent", {**intent, "supersedes": ""})],
    }
    text = rendered(link_tree(link, superseded_by="gap:1:00:0"))
    assert "superseded by gap:1:00:0" in text
    lines = text.splitlines()
    assert "supersedes t-1: 0" in lines[1]
    assert "fee bump 1: supersedes t-1: 0" in lines[2]
    assert "fee bump 2: fills a gap: 0" in lines[3]


def test_an_approval_is_told_in_words() -> None:
    body = {
        "act": "approval",
        "approver": "alice",
        "decision": "reject",
        "expires_at": "2026-01-02T03:04:05.000000Z",
        "terms_sha256": "0x" + "ab" * 32,
        "transfer_id": "t-1",
    }
    link = {"link_id": "t-1:approval", "state": "ADMINISTRATIVE", "trace_id": "ab" * 16}
    text = rendered(link_tree({**link, "entries": [entry("policy", body)]}))
    assert "alice rejects 0xababab…abab, until 2026-01-02T03:04:05" in text


def span(name: str, span_id: str, parent: str, start: int, end: int, *, failed: bool = False) -> dict[str, Any]:
    status = {"code": 2} if failed else {}
    reason = [{"key": "error.type", "value": {"stringValue": "POLICY_DENIED"}}] if failed else []
    made = {"name": name, "spanId": span_id, "startTimeUnixNano": str(start), "endTimeUnixNano": str(end)}
    return {**made, "status": status, "attributes": reason, **({"parentSpanId": parent} if parent else {})}


def test_a_trace_is_drawn_by_depth_and_time() -> None:
    document = {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "gateway"}}]},
                "scopeSpans": [
                    {
                        "spans": [
                            span("child", "02", "01", 5_000_000, 10_000_000, failed=True),
                            span("root", "01", "ff", 0, 10_000_000),
                        ]
                    }
                ],
            }
        ]
    }
    spans = read_spans(document)
    (root,) = as_forest(spans)
    assert [child.name for child in root.children] == ["child"]
    lines = rendered(waterfall(read_spans(document))).splitlines()
    assert "2 spans, 10.0 ms" in lines[0]
    assert [line for line in lines if "gateway" in line and "  child  POLICY_DENIED" in line and line.endswith("5.0")]
