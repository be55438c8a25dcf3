"""The golden link as a tree: each step, its time, its proof mark."""

from __future__ import annotations

from typing import Any

from rich.text import Text
from rich.tree import Tree

from tools.goldenlink.amounts import show_wei

_PROVEN = ("✓", "green")
_PENDING = ("…", "yellow")


def link_tree(link: dict[str, Any]) -> Tree:
    """✓: a signed checkpoint covers the entry. …: it is in the log, and the next checkpoint will."""
    head = Text.assemble((link["link_id"], "bold"), "  ", (link["state"], _state_style(link["state"])))
    head.append(f"  trace {link['trace_id']}", "dim")
    tree = Tree(head, guide_style="dim")
    for entry in link["entries"]:
        mark, style = _PROVEN if entry["provable"] else _PENDING
        line = Text.assemble((mark, style), " ", (f"{entry['kind']:<10}", "bold"))
        line.append(f" {entry['at'][11:23]} ", "dim")
        line.append(f"#{entry['index']:<6} ", "cyan")
        line.append(_summary(entry["kind"], entry["body"]))
        tree.add(line)
    return tree


def _summary(kind: str, body: dict[str, Any] | None) -> str:
    if body is None:
        return "(erased)"
    match kind:
        case "intent":
            to = _short(body["to"]) if body["to"] else "a new contract"
            what = f"{show_wei(body['value_wei'])} → {to}"
            what += f", {(len(body['data']) - 2) // 2} bytes of data" if body["data"] != "0x" else ""
            policy = body["policy"]
            rules = f" ({'; '.join(policy['rules'])})" if policy["decision"] == "deny" else ""
            return f"{what}; policy v{policy['version']}: {policy['decision']}{rules}"
        case "signature":
            if body["status"] != "success":
                return f"{body['status']}: {body['error']}"
            token = body["token"]["label"]
            return f"{body['algorithm']} in token '{token}', {body['duration_ms']} ms; tx {_short(body['tx_hash'])}"
        case "request":
            batch = f", {body['batch']['index'] + 1} of {body['batch']['size']}" if body["batch"] else ""
            return f"to {body['node']}, attempt {body['attempt']}{batch}"
        case "response":
            answer = f"accepted {_short(body['tx_hash'])}" if body["tx_hash"] else f"HTTP {body['http_status']}"
            return f"from {body['node']}, attempt {body['attempt']}: {answer}"
        case "inclusion":
            nodes = ", ".join(body["agreeing_nodes"])
            return f"{body['status']} in block {body['block_number']} {_short(body['block_hash'])}; {nodes} agree"
        case "revocation":
            return f"block {_short(body['block_hash'])} is gone: {body['reason']}"
        case _:
            return ", ".join(f"{name} {value}" for name, value in body.items() if isinstance(value, str | int))


def _short(text: str) -> str:
    return text if len(text) <= 14 else f"{text[:8]}…{text[-4:]}"


def _state_style(state: str) -> str:
    return {"FINALIZED": "green", "FAILED": "red"}.get(state, "yellow")
