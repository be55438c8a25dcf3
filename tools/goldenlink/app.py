"""The commands. Each asks, prints, and leaves an exit code that means something (exits.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table

from tools.goldenlink.client import connect
from tools.goldenlink.exits import Exit, Failure
from tools.goldenlink.link_tree import link_tree
from tools.goldenlink.options import Json, TokenFile, Url
from tools.goldenlink.output import console, errors, facts, print_json
from tools.goldenlink.policy_commands import policy_app
from tools.goldenlink.recovery import make_key_file, open_recovery
from tools.goldenlink.trace_commands import trace_app
from tools.goldenlink.transfer_commands import transfer_app
from tools.goldenlink.verifying import print_reports, read_trust, verify_files

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
recovery_app = typer.Typer(no_args_is_help=True, help="The wallet's mnemonic, for its owner alone.")
app.add_typer(wallet_app, name="wallet")
app.add_typer(account_app, name="account")
app.add_typer(link_app, name="link")
app.add_typer(transfer_app, name="transfer")
app.add_typer(policy_app, name="policy")
app.add_typer(trace_app, name="trace")
app.add_typer(recovery_app, name="recovery")


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


@link_app.command("show")
def link_show(
    link_id: Annotated[str, typer.Argument(help="Transfer id.")],
    json: Json = False,
    url: Url = None,
    token_file: TokenFile = None,
) -> None:
    """The golden link as a tree: each step, its time, its proof mark."""
    client = connect(url, token_file)
    link = client.get(f"/v1/links/{link_id}")
    if json:
        print_json(link)
        return
    # What spends its nonce in its place stands in no entry of its own link.
    transfer = client.find(f"/v1/transfers/{link_id}")
    console.print(link_tree(link, transfer["superseded_by"] if transfer else None))


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
