"""`python -m tools.chaos [--transfers N] [--seed S]`: exit status 0 when every promise was kept."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
import uvloop
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url

from services.runtime.db import Database
from services.runtime.settings import DatabaseSettings
from tools.bench.machine import describe_commit, describe_machine
from tools.chaos.audit import Audit
from tools.chaos.client import Client
from tools.chaos.deciding import HOLDERS, OPERATOR, Deciding
from tools.chaos.faults import BLOCK_TIME_S, DEEPEST_REORG, SLOTS_IN_AN_EPOCH, Faults
from tools.chaos.finding import Finding
from tools.chaos.load import Account, Load, make_accounts
from tools.chaos.plan import ACCOUNTS, make_orders
from tools.chaos.policies import APPROVAL_VALID_S, THRESHOLD_WEI, policy_document
from tools.chaos.policy_change import PolicyChange
from tools.chaos.progress import told
from tools.chaos.recovery import Row, summarise
from tools.stack.options import StackOptions
from tools.stack.services import SERVICE_NAMES, replica_name
from tools.stack.stack import Stack

_CONSOLE = Console(highlight=False)
_DIRECTORY = Path("build") / "chaos-stack"
_OUTPUT = Path("build") / "chaos.json"
_REPLICAS = 2
_FUNDS_WEI = 10**21
_FUNDED_WITHIN_S = 30.0
_GIVE_UP_S = 60.0
# After everything is whole again: nothing that goes on takes so long until the next transfer has ended.
_STILL_S = APPROVAL_VALID_S + 60.0


def main(
    transfers: Annotated[int, typer.Option(min=1, max=THRESHOLD_WEI - 1, help="how many are asked for")] = 2_000,
    seed: Annotated[int | None, typer.Option(help="replays a run's load and the order of its faults")] = None,
    rate: Annotated[float, typer.Option(min=0.1, help="transfers a second")] = 15.0,
    faults: Annotated[bool, typer.Option(help="--no-faults: the load alone")] = True,
) -> None:
    """Kill, pause, lie and reorganise under load; then count."""
    chosen = secrets.randbelow(2**32) if seed is None else seed
    _CONSOLE.print(f"seed {chosen}: python -m tools.chaos --transfers {transfers} --seed {chosen} --rate {rate:g}")
    run = _Run(transfers, chosen, rate, faults)
    kept = uvloop.run(run.run())
    raise typer.Exit(0 if kept else 1)


class _Run:
    def __init__(self, transfers: int, seed: int, rate: float, with_faults: bool) -> None:
        self._transfers = transfers
        self._seed = seed
        self._rate = rate
        self._with_faults = with_faults
        self._started = time.monotonic()

    async def run(self) -> bool:
        fault_directory = (_DIRECTORY.parent / "chaos-faults").resolve()
        fault_directory.mkdir(parents=True, exist_ok=True)
        for left in fault_directory.iterdir():
            left.unlink()
        environment = {"WALLET_FAULT_DIR": str(fault_directory), "WALLET_STALL_AFTER_S": "6", "WALLET_GAP_AFTER_S": "8"}
        policy = fault_directory / "policy.yaml"
        policy.write_text(policy_document(1), encoding="utf-8")
        options = StackOptions(
            policy_file=policy,
            block_time_s=BLOCK_TIME_S,
            slots_in_an_epoch=SLOTS_IN_AN_EPOCH,
            supervised=True,
            replicas=dict.fromkeys(SERVICE_NAMES, _REPLICAS),
            environment=dict.fromkeys(SERVICE_NAMES, environment),
        )
        self._say(f"starting {_REPLICAS} replicas of each service")
        async with Stack(_DIRECTORY, options) as stack:
            names = [replica_name(name, index) for name in SERVICE_NAMES for index in range(_REPLICAS)]
            faults = Faults(stack, fault_directory, names, self._seed)
            tokens = {name: _read(await stack.create_api_token(name, role)) for name, role in HOLDERS.items()}
            client = Client(stack.record["gateway_urls"], tokens, _GIVE_UP_S)
            database = _open_database(stack)
            try:
                return await self._run(stack, faults, client, database)
            finally:
                await faults.close()
                await client.close()
                await database.close()

    async def _run(self, stack: Stack, faults: Faults, client: Client, database: Database) -> bool:
        accounts = await make_accounts(client)
        await _fund(stack, accounts[:ACCOUNTS])
        deciding, change = Deciding(client), PolicyChange()
        load = Load(client, deciding, accounts, self._rate)
        self._say(f"{self._transfers:,} transfers at {self._rate:g}/s, and faults meanwhile")
        stop = asyncio.Event()

        def line() -> str:
            return f"{len(load.accepted):,} accepted, {len(faults.injected):,} faults"

        async with told(line, self._say, database), asyncio.TaskGroup() as tasks:
            if self._with_faults:
                tasks.create_task(faults.run(stop))
            changing = tasks.create_task(change.run(deciding, load.half_offered))
            await load.run(make_orders(self._seed, self._transfers))
            await changing
            stop.set()
        healed = time.time()
        self._say(f"{len(load.accepted):,} accepted, {client.repeated:,} requests repeated; everything is whole again")
        async with told(lambda: "waiting for the last to end", self._say, database):
            settled_s = await self._settle(database)
        self._say("reading chain, log, tables and bundles")
        trust = stack.trust_file.read_bytes()
        audit = Audit(database, stack.record["chain_url"], client, trust, accounts, load.accepted, OPERATOR)
        async with told(lambda: f"{audit.log.entries:,} entries, {audit.verified:,} bundles", self._say, None):
            kept = await audit.run()
        signers = [replica_name("signer", index) for index in range(_REPLICAS)]
        findings = [
            Finding("every request was accepted", not load.refused, "; ".join(load.refused[:5]) or "all"),
            Finding("no answer was a 500", not client.internal_errors, "; ".join(client.internal_errors[:3]) or "none"),
            *kept,
            await change.audit(stack, signers, database, audit.log.policy),
        ]
        rows = await summarise(database, faults.injected)
        self._say(f"{audit.log.entries:,} entries and {audit.verified:,} bundles read")
        self._show(findings, rows, faults, audit, load, deciding, settled_s)
        self._write(findings, rows, faults, healed, settled_s)
        return all(finding.ok for finding in findings)

    async def _settle(self, database: Database) -> float:
        """Return when every transfer has ended, or none has for so long that no other will.

        Seconds until all had but those that nobody decides about: these wait for their time to be over.
        """
        began = last_ended = time.monotonic()
        settled_s = fewest = None
        while time.monotonic() < last_ended + _STILL_S:
            ((open_, waiting),) = await database.rows(
                "SELECT count(*), count(*) FILTER (WHERE state = 'AWAITING_APPROVAL') FROM gateway.transfers "
                "WHERE state NOT IN ('FINALIZED', 'FAILED')"
            )
            if fewest is None or open_ < fewest:
                fewest, last_ended = open_, time.monotonic()
            if settled_s is None and open_ == waiting:
                settled_s = time.monotonic() - began
            if not open_:
                break
            await asyncio.sleep(0.5)
        return time.monotonic() - began if settled_s is None else settled_s

    def _say(self, what: str) -> None:
        _CONSOLE.print(f"[dim]{time.monotonic() - self._started:6.1f} s[/dim]  {what}")

    def _show(
        self,
        findings: list[Finding],
        rows: list[Row],
        faults: Faults,
        audit: Audit,
        load: Load,
        deciding: Deciding,
        settled_s: float,
    ) -> None:
        table = Table("fault", "on", "injected", "stood still, median", "longest", title="Faults")
        for row in rows:
            table.add_row(row.fault, row.target, str(row.injected), _seconds(row.median_s), _seconds(row.longest_s))
        _CONSOLE.print(table)
        _CONSOLE.print(
            f"{sum(faults.points_hit.values())} deaths at {len(faults.points_hit)} fault points; "
            f"{len(faults.points_missed)} armed ones were not reached; "
            f"{audit.log.revocations} inclusions revoked by reorgs; {len(audit.log.bumped_links)} links bumped; "
            f"cancellations answered {load.cancellations}, {_answers(deciding)}; "
            f"all ended {settled_s:.1f} s after the last fault"
        )
        promises = Table("promise", "kept", "figures", title=f"Seed {self._seed}")
        for finding in findings:
            promises.add_row(finding.promise, "yes" if finding.ok else "[red]NO[/red]", finding.figures)
        _CONSOLE.print(promises)

    def _write(self, findings: list[Finding], rows: list[Row], faults: Faults, healed: float, settled_s: float) -> None:
        document: dict[str, Any] = {
            "format": "goldenlink.chaos.v1",
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": describe_commit(),
            "machine": describe_machine(),
            "seed": self._seed,
            "transfers": self._transfers,
            "rate_per_s": self._rate,
            "seconds": round(time.monotonic() - self._started, 1),
            "settled_s": round(settled_s, 1),
            "healed_at": healed,
            "findings": [asdict(finding) for finding in findings],
            "faults": [asdict(row) for row in rows],
            "points_hit": dict(faults.points_hit),
            "points_missed": dict(faults.points_missed),
            "injected": [asdict(one) for one in faults.injected],
        }
        _OUTPUT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        _CONSOLE.print(f"everything in {_OUTPUT}")


async def _fund(stack: Stack, accounts: list[Account]) -> None:
    """Return once no reorg of this harness can take the funds back: they would be gone for good."""
    async with aiohttp.ClientSession() as http:

        async def call(method: str, *parameters: Any) -> Any:
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(parameters)}
            async with http.post(stack.record["chain_url"], json=body) as reply:
                reply.raise_for_status()
                return (await reply.json())["result"]

        for account in accounts:
            await call("anvil_setBalance", account.address, hex(_FUNDS_WEI))
        safe_at = int(await call("eth_blockNumber"), 16) + DEEPEST_REORG + 1
        async with asyncio.timeout(2 * (DEEPEST_REORG + 1) * BLOCK_TIME_S + _FUNDED_WITHIN_S):
            while int(await call("eth_blockNumber"), 16) < safe_at:  # noqa: ASYNC110 - the chain is another process
                await asyncio.sleep(BLOCK_TIME_S / 4)


def _open_database(stack: Stack) -> Database:
    server = stack.foundation.database
    return Database(
        DatabaseSettings(
            database_url=server.role_url(make_url(server.url).username or "postgres"),
            database_password_file=stack.foundation.database_password_file if server.password else None,
        )
    )


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()


def _answers(deciding: Deciding) -> str:
    return ", ".join(f"{word} {status} {count} times" for (word, status), count in sorted(deciding.answers.items()))


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


if __name__ == "__main__":
    typer.run(main)
