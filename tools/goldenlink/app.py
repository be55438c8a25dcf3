"""The commands. Each asks, prints, and leaves an exit code that means something (exits.py)."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table

from tools.goldenlink.amounts import parse_value, show_wei
from tools.goldenlink.batch_file import read_batch
from tools.goldenlink.client import Client, connect
from tools.goldenlink.exits import Exit, Failure
from tools.goldenlink.following import follow_many, follow_one
from tools.goldenlink.link_tree import link_tree
from tools.goldenlink.output import console, errors, facts, print_json
from tools.goldenlink.recovery import make_key_file, open_recovery
from tools.goldenlink.verifying import print_reports, read_trust, verify_files
from tools.goldenlink.waterfall import read_spans, waterfall

_MAX_BATCH = 1_000

app = typer.Typer(
    name="goldenlink",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Wallets, transfers and their proofs.",
    epilog="Exit codes: 0 done · 1 not so (rejected, failed) · 2 wrong call · 3 refused · 4 unavailable, try again.",
)
wallet_app = typer.Typer(no_args_is_help=True, help="Wallets: a seed that nobody sees.")
account_app = typer.Typer(no_args_is_help=True, help="Accounts, derived from a wallet.")
link_app = typer.Typer(no_args_is_help=True, help="Golden links: who signed what, why, and whether it landed.")
policy_app = typer.Typer(no_args_is_help=True, help="The signing policy.")
recovery_app = typer.Typer(no_args_is_help=True, help="The wallet's mnemonic, for its owner alone.")
app.add_typer(wallet_app, name="wallet")
app.add_typer(account_app, name="account")
app.add_typer(link_app, name="link")
app.add_typer(policy_app, name="policy")
app.add_typer(recovery_app, name="recovery")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Url = Annotated[str | None, typer.Option(envvar="GOLDENLINK_URL", help="Gateway; by default that of 'make up'.")]
TokenFile = Annotated[
    Path | None, typer.Option(envvar="GOLDENLINK_TOKEN_FILE", help="File with the bearer token (operator).")
]


@wallet_app.command("create")
def wallet_create(
    wallet_id: Annotated[str | None, typer.Option("--id", help="An id of your choice; repeating it is safe.")] = None,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    words: Annotated[int, typer.Option(help="Words of the mnemonic: 12, 15, 18, 21 or 24.")] = 24,
    recovery_recipient: Annotated[
        str | None, typer.Option(help="Public key of 'recovery keygen'; without one the mnemonic is never shown.")
    ] = None,
    json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Make a wallet."""
    body: dict[str, Any] = {"name": name, "strength_bits": words * 32 // 3}
    if wallet_id:
        body["id"] = wallet_id
    if recovery_recipient:
        body["recovery_recipient"] = recovery_recipient
    wallet = connect(url, token_file).post("/v1/wallets", body)
    print_json(wallet) if json else console.print(facts("wallet", wallet))


@account_app.command("create")
def account_create(
    wallet_id: Annotated[str, typer.Argument(help="Wallet id.")],
    chain_id: Annotated[str | None, typer.Option(help="CAIP-2, such as eip155:1.")] = None,
    algorithm: Annotated[str, typer.Option(help="ecdsa_secp256k1 or ed25519.")] = "ecdsa_secp256k1",
    account: Annotated[int, typer.Option(help="BIP-44 account.")] = 0,
    index: Annotated[int, typer.Option(help="BIP-44 address index.")] = 0,
    json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Derive an account; the same path gives the same account again."""
    body = {"chain_id": chain_id, "algorithm": algorithm, "account": account, "index": index}
    created = connect(url, token_file).post(
        f"/v1/wallets/{wallet_id}/accounts", {name: value for name, value in body.items() if value is not None}
    )
    print_json(created) if json else console.print(facts("account", created))


@app.command()
def transfer(
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
    """Transfer value or tokens, call or create a contract; with --batch, many at once."""
    client = connect(url, token_file)
    key = idempotency_key or secrets.token_hex(16)
    if batch is not None:
        _transfer_batch(client, read_batch(batch, account), key, wait=wait, json=json)
        return
    if account is None:
        _fail(Failure(Exit.USAGE, "--account names the sender"), json)
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
            "tx hash": made["tx_hash"],
            "block": made["block_number"],
            "trace": made["trace_id"],
        },
    )


@link_app.command("show")
def link_show(
    link_id: Annotated[str, typer.Argument(help="Transfer id.")],
    json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """The golden link as a tree: each step, its time, its proof mark."""
    link = connect(url, token_file).get(f"/v1/links/{link_id}")
    print_json(link) if json else console.print(link_tree(link))


@link_app.command("bundle")
def link_bundle(
    link_id: Annotated[str, typer.Argument(help="Transfer id.")],
    out: Annotated[Path | None, typer.Option(help="File to write; by default standard output.")] = None,
    json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """The proof: one JSON document that verifies offline."""
    document = connect(url, token_file).get_bytes(f"/v1/links/{link_id}/bundle")
    if out is None:
        sys.stdout.buffer.write(document + b"\n")
        return
    try:
        out.write_bytes(document)
    except OSError as error:
        raise Failure(Exit.USAGE, f"{out}: {error.strerror}") from None
    print_json({"link_id": link_id, "file": str(out), "bytes": len(document)}) if json else console.print(
        f"{out}: {len(document):,} bytes"
    )


@app.command()
def trace(
    trace_or_transfer: Annotated[str, typer.Argument(help="Trace id (32 hex digits) or transfer id.")],
    json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """A trace as a waterfall."""
    client = connect(url, token_file)
    trace_id = trace_or_transfer
    if len(trace_id) != 32 or not set(trace_id) <= set("0123456789abcdef"):
        trace_id = client.get(f"/v1/transfers/{trace_or_transfer}")["trace_id"]
    document = client.get(f"/v1/traces/{trace_id}")
    print_json(document) if json else console.print(waterfall(read_spans(document)))


@app.command()
def verify(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle files.")],
    trust: Annotated[Path, typer.Option(help="Trust file: the keys that the verifier believes.")],
    state: Annotated[str | None, typer.Option(help="How far a link must have come, if it need not be closed.")] = None,
    json: Json = False,
) -> None:
    """Verify bundles offline, each numbered check; exit code 1 if one is rejected."""
    reports = verify_files(bundles, read_trust(trust), state)
    if json:
        print_json([{"file": str(path), **report.as_json()} for path, report in reports.items()])
    else:
        print_reports(reports)
    if not all(report.accepted for report in reports.values()):
        raise typer.Exit(Exit.NEGATIVE)


@policy_app.command("show")
def policy_show(json: Json = False, url: Url = None, token_file: TokenFile = None) -> None:
    """The policy in force."""
    policy = connect(url, token_file).get("/v1/policy")
    if json:
        print_json(policy)
    else:
        console.print(facts("policy", {"version": policy["version"], "sha256": policy["sha256"]}))
        console.print(policy["document"], markup=False)


@app.command()
def status(json: Json = False, url: Url = None, token_file: TokenFile = None) -> None:
    """Could a signature be made now, and if not, what is missing?"""
    found = connect(url, token_file).get("/v1/status")
    if json:
        print_json(found)
    else:
        console.print("[green]a signature could be made now[/green]" if found["can_sign"] else "[red]not now[/red]")
        for sentence in found["missing"]:
            console.print(f"  missing: {sentence}", markup=False)
        table = Table(box=None, pad_edge=False)
        for name in ("service", "answers", "details"):
            table.add_column(name, overflow="fold")
        for name, service in found["services"].items():
            details = ", ".join(f"{key} {value}" for key, value in service["details"].items())
            table.add_row(name, "yes" if service["answering"] else "[red]no[/red]", details)
        console.print(table)
    if not found["can_sign"]:
        raise typer.Exit(Exit.NEGATIVE)


@recovery_app.command("keygen")
def recovery_keygen(
    out: Annotated[Path, typer.Option(help="File for the private key; it is not overwritten.")], json: Json = False
) -> None:
    """Make a key pair to which a new wallet's mnemonic is encrypted."""
    recipient = make_key_file(out)
    print_json({"file": str(out), "recovery_recipient": recipient}) if json else console.print(
        facts("recovery key", {"private key": out, "recipient": recipient})
    )


@recovery_app.command("open")
def recovery_open(
    wallet_id: Annotated[str, typer.Argument(help="Wallet id.")],
    key: Annotated[Path, typer.Option(help="Private key of 'recovery keygen'.")],
    json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """Decrypt a wallet's mnemonic, here and for nobody else."""
    wallet = connect(url, token_file).get(f"/v1/wallets/{wallet_id}")
    if not wallet["encrypted_recovery"]:
        raise Failure(Exit.NEGATIVE, "the wallet was made without a recovery recipient: its mnemonic is never shown")
    mnemonic = open_recovery(wallet["encrypted_recovery"], wallet_id, key)
    print_json({"wallet_id": wallet_id, "mnemonic": mnemonic}) if json else console.print(mnemonic, markup=False)


def _fail(failure: Failure, json: bool) -> NoReturn:
    if json:
        print_json(failure.document)
    else:
        errors.print(failure.message, style="red", markup=False)
    sys.exit(failure.exit_code)


def main() -> None:
    """Run the command; a Failure becomes its message and its exit code."""
    try:
        app()
    except Failure as failure:
        _fail(failure, "--json" in sys.argv)
