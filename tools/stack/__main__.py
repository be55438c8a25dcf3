"""python -m tools.stack up | down | status"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tools.stack.options import StackOptions
from tools.stack.processes import ProcessTable, StackError
from tools.stack.shutdown import end_stack, locked, run_directory
from tools.stack.stack import DEFAULT_DIRECTORY, Stack, read_record

_HELP = """The whole suite on this machine, on loopback.

Each `up` starts from nothing. Use real ones in place of the embedded four by environment variables:

WALLET_DATABASE_URL  superuser URL of an empty database, postgresql://user:password@host:port/database; roles and
schemas are created in it.

WALLET_REDIS_URL  redis://:password@host:port/0

WALLET_PKCS11_LIBRARY  a PKCS#11 library with initialised tokens labelled keys, signer and evidence, each with a user
PIN, the PINs in $WALLET_TOKEN_PIN_DIR/<label>.pin. The services make their keys in them. A second signer wants a token
signer-1. For SoftHSM, SOFTHSM2_CONF says where they are.

WALLET_NODES  JSON, [{"name": "node-a", "url": "https://…", "chain_id": "eip155:1"}, …]; of each chain two must agree,
where it has two.

All four are tried before anything is started; down ends only what up has started.
"""

application = typer.Typer(help=_HELP, no_args_is_help=True, add_completion=False)
_console = Console()
DirectoryOption = Annotated[Path, typer.Option("--directory", help="where the stack keeps its files")]
JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable")]


@application.command()
def up(
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    as_json: JsonOption = False,
    block_time_s: Annotated[float, typer.Option("--block-time", help="seconds between blocks of the chain")] = 1.0,
    signer_workers: Annotated[int, typer.Option("--signer-workers", min=1)] = 1,
    tracing: Annotated[bool, typer.Option("--tracing/--no-tracing")] = True,
    metrics: Annotated[bool, typer.Option("--metrics/--no-metrics")] = True,
    jaeger: Annotated[bool, typer.Option("--jaeger", help="stock Jaeger in front of tracestore")] = False,
    policy: Annotated[Path | None, typer.Option("--policy", help="policy file of the signer", exists=True)] = None,
    replicas: Annotated[list[str] | None, typer.Option("--replicas", metavar="SERVICE=N", help="repeatable")] = None,
) -> None:
    """Start everything; return when it serves."""
    options = StackOptions(
        block_time_s=block_time_s,
        signer_workers=signer_workers,
        tracing=tracing,
        metrics=metrics,
        jaeger=jaeger,
        policy_file=policy,
        replicas=dict(map(_replicas, replicas or [])),
    )
    stack = Stack(directory, options)
    asyncio.run(stack.start())
    _show(stack.record, as_json)


@application.command()
def down(directory: DirectoryOption = DEFAULT_DIRECTORY, as_json: JsonOption = False) -> None:
    """End everything; return when nothing runs."""
    with locked(directory.resolve(), wait=True):
        ended = end_stack(directory.resolve())
    if as_json:
        print(json.dumps({"ended": ended}))
    else:
        print(f"ended: {', '.join(ended)}" if ended else "nothing was running")


@application.command()
def status(directory: DirectoryOption = DEFAULT_DIRECTORY, as_json: JsonOption = False) -> None:
    """What runs where. Exit 1 when a process of the stack has ended, 2 when none was started."""
    record = read_record(directory.resolve())
    living = set(ProcessTable(run_directory(directory.resolve())).living())
    for process in record["processes"]:
        process["alive"] = process["name"] in living
    _show(record, as_json)
    if not all(process["alive"] for process in record["processes"]):
        raise typer.Exit(1)


def _replicas(text: str) -> tuple[str, int]:
    service, _, count = text.partition("=")
    if not count.isdecimal():
        raise typer.BadParameter("SERVICE=N, such as signer=2", param_hint="--replicas")
    return service, int(count)


def _show(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(record, indent=1))
        return
    table = Table("process", "pid", "listens on", title="Golden Link, on this machine", title_justify="left")
    for process in record["processes"]:
        ports = " · ".join(f"{name} {number}" for name, number in process["ports"].items())
        name = process["name"] if process.get("alive", True) else f"[red]{process['name']} (ended)[/red]"
        table.add_row(name, str(process["pid"]), ports or "Unix socket")
    _console.print(table)
    jaeger = record["jaeger"]
    places = {
        "gateway": " ".join(f"{url}/docs" for url in record["gateway_urls"])
        if "gateway" in record["services"]
        else None,
        "tiles": " ".join(record["tiles_urls"]) if "evidence" in record["services"] else None,
        "metrics": record["metrics_urls"].get("signer"),
        "jaeger": " ".join(jaeger["query_urls"].values()) if jaeger else None,
        "sampling": jaeger["strategies_file"] if jaeger else None,
        "tokens": str(Path(record["token_files"]["operator"]).parent) + "/api-token-{operator,approver,auditor}",
        "logs": f"{record['directory']}/logs",
        "record": f"{record['directory']}.json",
    }
    for name, place in places.items():
        if place is not None:
            _console.print(f"{name:<8} {place}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    try:
        application()
    except StackError as failure:
        print(f"stack: {failure}", file=sys.stderr)
        sys.exit(2)
