"""The golden link as a tree: each step, its time, its proof mark."""

from __future__ import annotations

from typing import Any

from rich.text import Text
from rich.tree import Tree

from tools.goldenlink.amounts import show_wei

_PROVEN = ("✓", "green")
_PENDING = ("…", "yellow")


def link_tree(link: dict[str, Any], superseded_by: str | None = None) -> Tree:
    """✓: a signed checkpoint covers the entry. …: it is in the log, and the next checkpoint will."""
    head = Text.assemble((link["link_id"], "bold"), "  ", (link["state"], _state_style(link["state"])))
    head.append(f"  trace {link['trace_id']}", "dim")
    if superseded_by is not None:
        head.append(f"  superseded by {superseded_by}", "yellow")
    tree = Tree(head, guide_style="dim")
    intents = 0
    for entry in link["entries"]:
        mark, style = _PROVEN if entry["provable"] else _PENDING
        line = Text.assemble((mark, style), " ", (f"{entry['kind']:<10}", "bold"))
        line.append(f" {entry['at'][11:23]} ", "dim")
        line.append(f"#{entry['index']:<6} ", "cyan")
        if entry["kind"] == "intent" and entry["body"] is not None:
            line.append(_standing(entry["body"], intents), "yellow")
            intents += 1
        line.append(_summary(entry["kind"], entry["body"]))
        tree.add(line)
    return tree


def _standing(intent: dict[str, Any], earlier_intents: int) -> str:
    """What the intent is to others: a fee bump of those before it, or a no-op in the place of another link's."""
    bump = f"fee bump {earlier_intents}: " if earlier_intents else ""
    supersedes = intent.get("supersedes")
    if supersedes is None:
        return bump
    return f"{bump}supersedes {supersedes}: " if supersedes else f"{bump}fills a gap: "


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
            signed = body.get("client_signature")
            asked = f"; signed by the client's key {_short(signed['key_fingerprint'], 16)}" if signed else ""
            return f"{what}; policy v{policy['version']}: {policy['decision']}{rules}{asked}"
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
        case "policy" if body.get("act") == "approval":
            verb = "approves" if body["decision"] == "approve" else "rejects"
            what = body.get("terms_sha256") or body.get("policy_sha256", "")
            signed = body.get("client_signature")
            by = f"; signed by the key {_short(signed['key_fingerprint'], 16)}" if signed else ""
            return f"{body['approver']} {verb} {_short(what)}, until {body['expires_at'][:19]}{by}"
        case "revocation":
            return f"block {_short(body['block_hash'])} is gone: {body['reason']}"
        case _:
            return ", ".join(f"{name} {value}" for name, value in body.items() if isinstance(value, str | int))


def _short(text: str, head: int = 8) -> str:
    return text if len(text) <= head + 6 else f"{text[:head]}…{text[-4:]}"


def _state_style(state: str) -> str:
    return {"FINALIZED": "green", "FAILED": "red"}.get(state, "yellow")
