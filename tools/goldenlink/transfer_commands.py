"""Commands about transfers: make one or many, show, cancel, approve, reject."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tools.goldenlink.amounts import parse_value, show_wei
from tools.goldenlink.batch_file import read_batch
from tools.goldenlink.client import Client, connect
from tools.goldenlink.exits import Exit, Failure
from tools.goldenlink.following import follow_many, follow_one
from tools.goldenlink.options import ApproverTokenFile, Json, TokenFile, Url
from tools.goldenlink.output import console, facts, print_json

_MAX_BATCH = 1_000

transfer_app = typer.Typer(help="Transfers: make one or many, show, cancel, approve, reject.")
TransferId = Annotated[str, typer.Argument(help="Transfer id.")]
Terms = Annotated[
    str | None, typer.Option(help="terms_sha256 that you have checked; by default that of the transfer as it is.")
]


@transfer_app.callback(invoke_without_command=True)
def transfer(
    context: typer.Context,
    account: Annotated[str | None, typer.Option(help="Account id of the sender.")] = None,
    to: Annotated[str | None, typer.Option(help="Receiver, with its EIP-55 checksum.")] = None,
    value: Annotated[str | None, typer.Option(help="1000, '5 gwei', '0.25 ether'; a bare number is wei.")] = None,
    token: Annotated[str | None, typer.Option(help="ERC-20 contract.")] = None,
    amount: Annotated[str | None, typer.Option(help="Tokens, in their smallest unit.")] = None,
    data: Annotated[str | None, typer.Option(help="Call data or init code, 0x-hex.")] = None,
    call: Annotated[str | None, typer.Option(help="ABI signature, such as 'approve(address,uint256)'.")] = None,
    argument: Annotated[list[str] | None, typer.Option(help="An argument of --call, in order.")] = None,
    gas_limit: Annotated[str | None, typer.Option(help="Gas; by default estimated.")] = None,
    transaction_type: Annotated[
        str | None, typer.Option("--type", help="dynamic_fee (default), access_list or legacy.")
    ] = None,
    max_fee: Annotated[str | None, typer.Option(help="Most per gas, such as '30 gwei'.")] = None,
    batch: Annotated[Path | None, typer.Option(help="CSV file: to,value,token,amount,data,gas_limit,account.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="Repeat a request safely; by default a new one.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it has ended.")] = True,
    json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Transfer value or tokens, call or create a contract; with --batch, many at once; or see the commands."""
    if context.invoked_subcommand is not None:
        return
    client = connect(url, token_file)
    key = idempotency_key or secrets.token_hex(16)
    if batch is not None:
        _transfer_batch(client, read_batch(batch, account), key, wait=wait, json=json)
        return
    if account is None:
        raise Failure(Exit.USAGE, "--account names the sender")
    body: dict[str, Any] = {
        "account_id": account,
        "to": to,
        "value_wei": parse_value(value) if value is not None else None,
        "data": data,
        "call": {"signature": call, "arguments": argument or []} if call else None,
        "erc20": {"token": token, "amount": amount or ""} if token else None,
        "gas_limit": gas_limit,
        "type": transaction_type,
        "max_fee_per_gas_wei": parse_value(max_fee, "--max-fee") if max_fee else None,
    }
    made = client.post("/v1/transfers", {name: one for name, one in body.items() if one is not None}, key)
    if wait:
        made = follow_one(client, made, quiet=json)
    print_json(made) if json else console.print(_transfer_facts(made))
    if made["state"] == "FAILED":
        raise typer.Exit(Exit.NEGATIVE)


def _transfer_batch(client: Client, bodies: list[dict[str, Any]], key: str, *, wait: bool, json: bool) -> None:
    made: list[dict[str, Any]] = []
    for first in range(0, len(bodies), _MAX_BATCH):
        part = bodies[first : first + _MAX_BATCH]
        made += client.post("/v1/transfers:batch", {"transfers": part}, f"{key}-{first}")["transfers"]
    if wait:
        made = follow_many(client, made)
    if json:
        print_json({"transfers": made})
    else:
        table = Table(box=None, pad_edge=False)
        for name in ("transfer", "state", "block", "tx hash"):
            table.add_column(name, no_wrap=True)
        for one in made:
            table.add_row(one["id"], one["state"], str(one["block_number"] or ""), one["tx_hash"] or "")
        console.print(table)
    if any(one["state"] == "FAILED" for one in made):
        raise typer.Exit(Exit.NEGATIVE)


def _transfer_facts(made: dict[str, Any]) -> Table:
    failure = made["failure"]
    reverted = " (reverted on chain)" if made["receipt_status"] == 0 else ""
    return facts(
        f"transfer {made['id']}",
        {
            "state": made["state"] + reverted,
            "why": f"{failure['reason']}: {failure['message']}" if failure else None,
            "rule": failure["details"].get("rule") if failure else None,
            "from": made["account"],
            "to": made["to"] or "a new contract",
            "value": show_wei(made["value_wei"]),
            "nonce": made["nonce"],
            "fee bumps": made["replacements"] or None,
            "not mined": made["stall"],
            "supersedes": made["supersedes"] or ("a gap" if made["supersedes"] == "" else None),
            "superseded by": made["superseded_by"],
            "tx hash": made["tx_hash"],
            "block": made["block_number"],
            "trace": made["trace_id"],
        },
    )


@transfer_app.command("show")
def transfer_show(transfer_id: TransferId, json: Json = False, url: Url = None, token_file: TokenFile = None) -> None:
    """A transfer as it is now, with its approvals where the policy asks for some."""
    client = connect(url, token_file)
    found = client.get(f"/v1/transfers/{transfer_id}")
    if json:
        print_json(found)
        return
    console.print(_transfer_facts(found))
    if found["approval"]:
        console.print(_approval_facts(found, client.get(f"/v1/transfers/{transfer_id}/approvals")["approvals"]))


@transfer_app.command("cancel")
def transfer_cancel(transfer_id: TransferId, json: Json = False, url: Url = None, token_file: TokenFile = None) -> None:
    """Cancel: without a signature at once, else by a transfer that supersedes it; the chain decides which is mined."""
    made = connect(url, token_file).post(f"/v1/transfers/{transfer_id}:cancel")
    print_json(made) if json else console.print(_transfer_facts(made))


@transfer_app.command("approve")
def transfer_approve(
    transfer_id: TransferId,
    terms: Terms = None,
    json: Json = False,
    url: Url = None,
    token_file: ApproverTokenFile = None,
) -> None:
    """Approve a transfer that awaits approvals."""
    _decide(connect(url, token_file, "approver"), transfer_id, "approve", terms, json=json)


@transfer_app.command("reject")
def transfer_reject(
    transfer_id: TransferId,
    terms: Terms = None,
    json: Json = False,
    url: Url = None,
    token_file: ApproverTokenFile = None,
) -> None:
    """Reject a transfer that awaits approvals: it fails."""
    _decide(connect(url, token_file, "approver"), transfer_id, "reject", terms, json=json)


def _decide(client: Client, transfer_id: str, decision: str, terms: str | None, *, json: bool) -> None:
    transfer = client.get(f"/v1/transfers/{transfer_id}")
    terms = terms or transfer["terms_sha256"]
    if terms is None:
        raise Failure(Exit.NEGATIVE, f"the policy asks for no approval of {transfer_id} ({transfer['state']})")
    if not json:
        console.print(_transfer_facts(transfer))
    made = client.post(f"/v1/transfers/{transfer_id}:{decision}", {"terms_sha256": terms})
    print_json(made) if json else console.print(facts(decision, made))


def _approval_facts(transfer: dict[str, Any], approvals: list[dict[str, Any]]) -> Table:
    rule = transfer["approval"]
    given = [f"{one['approver']}: {one['decision']}, {one['at'][:19]}" for one in approvals]
    names = [f"{name} (signs)" if name in rule["keys"] else name for name in rule["approvers"]]
    return facts(
        "approvals",
        {
            "needed": f"{rule['count']} of {', '.join(names) or 'all approvers'}",
            "until": rule["expires_at"],
            "terms": transfer["terms_sha256"],
            "given": "\n".join(given) or "none",
        },
    )
