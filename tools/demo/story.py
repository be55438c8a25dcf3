"""What the demo shows, one step after another, through the public HTTP API alone."""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.panel import Panel
from rich.rule import Rule

from services.core.addresses import Address, checksum_address
from tools.demo.chain import DevelopmentChain
from tools.demo.failure import DemoFailed
from tools.demo.mirror import mirror_log
from tools.goldenlink.client import Client
from tools.goldenlink.following import follow_many, follow_one
from tools.goldenlink.link_tree import link_tree
from tools.goldenlink.output import console
from tools.goldenlink.verifying import print_reports, read_trust, verify_files
from tools.goldenlink.waterfall import read_spans, waterfall

CHAIN_ID = "eip155:31337"
BATCH_SIZE = 50
# The development policy denies it: what is sent there is lost.
_BURN_ADDRESS = "0x000000000000000000000000000000000000dEaD"
_TOKEN_CODE = Path(__file__).parent / "token" / "DemoToken.hex"


@dataclass
class Story:
    client: Client
    chain: DevelopmentChain
    stack: dict[str, Any]
    output: Path
    # Name of the bundle file → link id.
    links: dict[str, str] = field(default_factory=dict)

    def tell(self) -> None:
        """Run all steps. Raises DemoFailed where an outcome is not the one announced."""
        self._begin_output()
        account = self._make_account()
        self._transfer(account)
        token = self._deploy_token(account)
        self._transfer_tokens(account, token)
        self._transfer_batch(account)
        self._be_refused(account)
        self._revert(account, token)
        self._show_first_link()
        self._prove()

    def _begin_output(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        (self.output / "bundles").mkdir(parents=True)

    def _make_account(self) -> dict[str, Any]:
        _title("A wallet whose seed nobody sees, an account, and some ether on it")
        wallet = self.client.post("/v1/wallets", {"name": "demo treasury"})
        account: dict[str, Any] = self.client.post(f"/v1/wallets/{wallet['id']}/accounts", {"chain_id": CHAIN_ID})
        self.chain.fund(account["address"], 100)
        console.print(f"{account['address']}  {account['derivation_path']}  100 ether")
        return account

    def _transfer(self, account: dict[str, Any]) -> None:
        _title("A transfer, from the request to the finalized block")
        made = self._send(account, to=_somebody(), value_wei=str(10**17))
        self._expect(follow_one(self.client, made, quiet=False), "transfer", "FINALIZED", receipt_status=1)

    def _deploy_token(self, account: dict[str, Any]) -> str:
        _title("An ERC-20 contract, created through the same steps")
        made = self._send(account, data=_TOKEN_CODE.read_text(encoding="utf-8").strip())
        ended = self._expect(follow_one(self.client, made, quiet=True), "erc20-deploy", "FINALIZED", receipt_status=1)
        token = checksum_address(Address(bytes.fromhex(self.chain.created_contract(ended["tx_hash"])[2:])))
        console.print(f"DemoToken at {token}")
        return token

    def _transfer_tokens(self, account: dict[str, Any], token: str) -> None:
        _title("Tokens, by name")
        receiver = _somebody()
        made = self._send(account, to=receiver, erc20={"token": token, "amount": "2500"})
        self._expect(follow_one(self.client, made, quiet=True), "erc20-transfer", "FINALIZED", receipt_status=1)
        balance = self.chain.token_balance(token, receiver)
        if balance != 2500:
            raise DemoFailed(f"the receiver holds {balance} tokens, not 2500")
        console.print(f"{receiver} now holds {balance}")

    def _transfer_batch(self, account: dict[str, Any]) -> None:
        _title(f"{BATCH_SIZE} transfers at once, each with a link and a trace of its own")
        bodies = [
            {"account_id": account["id"], "to": _somebody(), "value_wei": str(10**15 + number)}
            for number in range(BATCH_SIZE)
        ]
        accepted = self.client.post("/v1/transfers:batch", {"transfers": bodies}, secrets.token_hex(16))
        ended = follow_many(self.client, accepted["transfers"])
        for number, transfer in enumerate(ended, 1):
            self._expect(transfer, f"batch-{number:02d}", "FINALIZED", receipt_status=1, quiet=True)
        console.print(f"{len(ended)} finalized, nonces {ended[0]['nonce']} to {ended[-1]['nonce']}")

    def _be_refused(self, account: dict[str, Any]) -> None:
        _title("A transfer that the policy refuses: the refusal is proven too")
        made = self._send(account, to=_BURN_ADDRESS, value_wei=str(10**18))
        ended = self._expect(follow_one(self.client, made, quiet=True), "denied", "FAILED")
        if ended["failure"]["reason"] != "POLICY_DENIED":
            raise DemoFailed(f"refused for {ended['failure']['reason']}, not by policy")
        console.print(ended["failure"]["details"].get("rule", ""), markup=False)

    def _revert(self, account: dict[str, Any], token: str) -> None:
        _title("A call that reverts on chain: mined, paid for, proven to have failed")
        # More tokens than exist. Naming the gas limit skips the estimate that would have refused it.
        call = {"signature": "transfer(address,uint256)", "arguments": [_somebody(), str(10**30)]}
        made = self._send(account, to=token, call=call, gas_limit="100000")
        self._expect(follow_one(self.client, made, quiet=True), "reverted", "FINALIZED", receipt_status=0)
        console.print("status 0 in the receipt")

    def _show_first_link(self) -> None:
        link_id = self.links["transfer"]
        _title("The first transfer's golden link")
        link = self.client.get(f"/v1/links/{link_id}")
        console.print(link_tree(link))
        _title("The same, as one trace over every service")
        console.print(waterfall(read_spans(self.client.get(f"/v1/traces/{link['trace_id']}"))))

    def _prove(self) -> None:
        _title("Bundles and the public log, verified with no network and no service")
        bundles = self.output / "bundles"
        for name, link_id in self.links.items():
            (bundles / f"{name}.json").write_bytes(self.client.get_bytes(f"/v1/links/{link_id}/bundle"))
        trust_file = self.output / "trust.json"
        shutil.copyfile(self.stack["trust_file"], trust_file)
        checkpoint = mirror_log(self.stack["tiles_url"], self.output / "log")
        reports = verify_files(sorted(bundles.glob("*.json")), read_trust(trust_file), None)
        shown = {path: report for path, report in reports.items() if not path.name.startswith("batch-")}
        print_reports(shown)
        rejected = [path.name for path, report in reports.items() if not report.accepted]
        if rejected:
            raise DemoFailed(f"rejected: {', '.join(rejected)}")
        console.print(f"and the {len(reports) - len(shown)} of the batch; the log has {checkpoint.tree_size} entries")
        console.print(
            Panel(
                f"{bundles}/*.json\n{trust_file}\n{self.output / 'log'}/  (tlog-tiles)\n\n"
                f"goldenlink verify {bundles}/*.json --trust {trust_file}",
                title="yours to keep",
                title_align="left",
            )
        )

    def _send(self, account: dict[str, Any], **body: Any) -> dict[str, Any]:
        made: dict[str, Any] = self.client.post(
            "/v1/transfers", {"account_id": account["id"], **body}, secrets.token_hex(16)
        )
        return made

    def _expect(
        self,
        transfer: dict[str, Any],
        name: str,
        state: str,
        receipt_status: int | None = None,
        *,
        quiet: bool = False,
    ) -> dict[str, Any]:
        if transfer["state"] != state or transfer["receipt_status"] != receipt_status:
            raise DemoFailed(f"{name} is {json.dumps(transfer)}, not {state} with receipt status {receipt_status}")
        self.links[name] = transfer["id"]
        if not quiet:
            console.print(f"[green]{transfer['state']}[/green]  {transfer['id']}")
        return transfer


def _somebody() -> str:
    """A fresh receiver, with its checksum."""
    return checksum_address(Address(secrets.token_bytes(20)))


def _title(text: str) -> None:
    console.print()
    console.print(Rule(text, align="left", style="bold"))
