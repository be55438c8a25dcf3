"""Commands about the signing policy: the one in force, and changes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tools.goldenlink.client import connect
from tools.goldenlink.exits import Exit, Failure
from tools.goldenlink.options import ApproverTokenFile, Json, TokenFile, Url
from tools.goldenlink.output import console, facts, print_json

policy_app = typer.Typer(no_args_is_help=True, help="The signing policy.")
Name = Annotated[str, typer.Argument(help="SHA-256 of the proposed document, hex.")]


@policy_app.command("show")
def policy_show(json: Json = False, url: Url = None, token_file: TokenFile = None) -> None:
    """The policy in force."""
    policy = connect(url, token_file).get("/v1/policy")
    if json:
        print_json(policy)
    else:
        console.print(facts("policy", {"version": policy["version"], "sha256": policy["sha256"]}))
        console.print(policy["document"], markup=False)


@policy_app.command("propose")
def policy_propose(
    document: Annotated[Path, typer.Argument(help="YAML file; its version is above the one in force.")],
    json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Propose a policy; two approvers besides you put it in force."""
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(Exit.USAGE, f"{document}: {error}") from None
    proposed = connect(url, token_file).post("/v1/policies", {"document": text})
    print_json(proposed) if json else console.print(_proposal_facts(proposed))


@policy_app.command("list")
def policy_list(json: Json = False, url: Url = None, token_file: TokenFile = None) -> None:
    """Proposed policies, newest first."""
    found = connect(url, token_file).get("/v1/policies")
    if json:
        print_json(found)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("version", "state", "sha256", "proposed by", "approved by"):
        table.add_column(name, overflow="fold")
    for one in found["policies"]:
        table.add_row(str(one["version"]), one["state"], one["sha256"], one["proposer"], _approved_by(one))
    console.print(table)


@policy_app.command("approve")
def policy_approve(sha256: Name, json: Json = False, url: Url = None, token_file: ApproverTokenFile = None) -> None:
    """Approve a proposed policy; the second approval puts it in force."""
    _decide(sha256, "approve", url, token_file, json=json)


@policy_app.command("reject")
def policy_reject(sha256: Name, json: Json = False, url: Url = None, token_file: ApproverTokenFile = None) -> None:
    """Reject a proposed policy."""
    _decide(sha256, "reject", url, token_file, json=json)


def _decide(sha256: str, decision: str, url: str | None, token_file: Path | None, *, json: bool) -> None:
    made = connect(url, token_file, "approver").post(f"/v1/policies/{sha256}:{decision}")
    print_json(made) if json else console.print(_proposal_facts(made["policy"]))


def _proposal_facts(proposal: dict[str, Any]) -> Table:
    failure = proposal["failure"]
    return facts(
        f"policy version {proposal['version']}",
        {
            "state": proposal["state"],
            "why": f"{failure['reason']}: {failure['message']}" if failure else None,
            "sha256": proposal["sha256"],
            "proposed by": proposal["proposer"],
            "approved by": _approved_by(proposal),
            "open until": proposal["expires_at"],
        },
    )


def _approved_by(proposal: dict[str, Any]) -> str:
    return ", ".join(one["approver"] for one in proposal["approvals"] if one["decision"] == "approve")
