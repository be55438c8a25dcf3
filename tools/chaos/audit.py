"""What must be true at the end, each counted: from the chain, the log, the tables, and the bundles that anyone gets."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import aiohttp

from services.runtime.db import Database
from tools.chaos.client import Client, GaveUp
from tools.chaos.finding import Finding
from tools.chaos.load import Account
from tools.chaos.log_audit import LogAudit
from tools.chaos.plan import AWAITING, NEVER_MINED, Kind, Wish
from tools.verify import load_trust, verify_bundle

_VERIFIED_AT_ONCE = 50
_FETCHERS_A_CORE = 4
_BLOCKS_AT_ONCE = 100
_SHOWN = 5
# Why a transfer of each kind may have failed; a plain one may not.
_MAY_FAIL = {
    Kind.PLAIN: frozenset[str](),
    Kind.DENIED: frozenset({"POLICY_DENIED"}),
    Kind.POOR: frozenset({"INSUFFICIENT_FUNDS"}),
    Kind.CANCELLED: frozenset({"TRANSFER_CANCELLED", "SUPERSEDED"}),
    # Approved by the policy of then, and not signed before one that asks for more came into force.
    Kind.APPROVED: frozenset({"APPROVAL_REQUIRED"}),
    Kind.REJECTED: frozenset({"APPROVAL_REJECTED"}),
    Kind.UNDECIDED: frozenset({"APPROVAL_EXPIRED"}),
}


@dataclass(frozen=True, slots=True)
class _Ended:
    state: str
    reason: str | None


class Audit:
    def __init__(
        self,
        database: Database,
        chain_url: str,
        client: Client,
        trust: bytes,
        accounts: Sequence[Account],
        accepted: Mapping[str, Wish],
        requester: str,
    ) -> None:
        """`requester` is the actor who asked for all of `accepted`."""
        self._database = database
        self._chain_url = chain_url
        self._client = client
        self._trust = trust
        self._accounts = accounts
        self._accepted = accepted
        self._requester = requester
        self.log = LogAudit(database)
        self.verified = 0  # bundles

    async def run(self) -> list[Finding]:
        ended = await self._ended()
        mined = await self._mined()
        await self.log.read()
        return [
            self._none_lost(ended),
            self._as_wished(ended),
            self._none_twice(ended, mined),
            self._one_link_a_nonce(),
            await self._no_gap(),
            self._decided_rightly(ended),
            await self._all_proven(ended),
            Finding("the log is consistent", not self.log.damaged, _figures(self.log.damaged, self.log.entries)),
            self._nothing_unasked(ended),
        ]

    async def _ended(self) -> dict[str, _Ended]:
        rows = await self._database.rows(
            "SELECT transfer_id, state, failure->>'reason' AS reason FROM gateway.transfers"
        )
        return {row["transfer_id"]: _Ended(row["state"], row["reason"]) for row in rows}

    def _none_lost(self, ended: Mapping[str, _Ended]) -> Finding:
        states = Counter(ended[one].state if one in ended else "LOST" for one in self._accepted)
        reasons = Counter(
            str(ended[one].reason) for one in self._accepted if one in ended and ended[one].state == "FAILED"
        )
        ok = set(states) <= {"FINALIZED", "FAILED"} and "None" not in reasons
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        parts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        return Finding(
            "accepted = finalized + failed with a reason", ok, f"{len(self._accepted)} accepted: {parts} ({why})"
        )

    def _as_wished(self, ended: Mapping[str, _Ended]) -> Finding:
        wrong = [
            f"{one} ({wish.kind}): {ended[one].state} {ended[one].reason}"
            for one, wish in self._accepted.items()
            if one in ended and ended[one].state == "FAILED" and ended[one].reason not in _MAY_FAIL[wish.kind]
        ]
        wrong += [
            f"{one} ({wish.kind}) was mined"
            for one, wish in self._accepted.items()
            if wish.kind in NEVER_MINED and one in ended and ended[one].state == "FINALIZED"
        ]
        return Finding("no transfer failed but for a reason of its own", not wrong, _figures(wrong, 0))

    def _none_twice(self, ended: Mapping[str, _Ended], mined: Mapping[tuple[str, int], int]) -> Finding:
        senders = [account.address for account in self._accounts]
        wrong = []
        for one, wish in self._accepted.items():
            times = mined.get((senders[wish.account], wish.value_wei), 0)
            expected = 1 if one in ended and ended[one].state == "FINALIZED" else 0
            if times != expected:
                wrong.append(f"{one} is {ended[one].state if one in ended else 'LOST'} and was mined {times} times")
        return Finding(
            "mined once if finalized, else never", not wrong, _figures(wrong, sum(mined.values()), "mined transfers")
        )

    def _one_link_a_nonce(self) -> Finding:
        wrong = [f"{key} is signed for {sorted(links)}" for key, links in self.log.signed.items() if len(links) > 1]
        wrong += [
            f"{key} is superseded by {sorted(links)}" for key, links in self.log.superseding.items() if len(links) > 1
        ]
        counted = f"{len(self.log.signed)} nonces, {len(self.log.superseding)} superseded or filled"
        return Finding(
            "a nonce is signed for one transfer and at most one superseding link",
            not wrong,
            "; ".join(wrong[:_SHOWN]) or f"{counted}, {len(self.log.bumped_links)} links bumped",
        )

    async def _no_gap(self) -> Finding:
        """Every nonce below the highest signed one is mined."""
        highest: dict[str, int] = {}
        for key in itertools.chain(self.log.signed, self.log.superseding):
            highest[key.sender] = max(highest.get(key.sender, -1), key.nonce)
        wrong = []
        async with aiohttp.ClientSession() as http:
            for sender, nonce in highest.items():
                count = int(await _call(http, self._chain_url, "eth_getTransactionCount", sender, "latest"), 16)
                if count != nonce + 1:
                    wrong.append(f"{sender}: {count} mined, nonce {nonce} signed")
        return Finding("no nonce gap", not wrong, _figures(wrong, len(highest), "accounts"))

    async def _all_proven(self, ended: Mapping[str, _Ended]) -> Finding:
        """Each finalized transfer and each denial has a bundle that the stand-alone verifier accepts."""
        closed = [one for one, end in ended.items() if end.state == "FINALIZED" or end.reason == "POLICY_DENIED"]
        wrong: list[str] = []
        chunks = iter([closed[at : at + _VERIFIED_AT_ONCE] for at in range(0, len(closed), _VERIFIED_AT_ONCE)])
        cores = os.cpu_count() or 1
        # Not forked: this process has threads.
        with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:

            async def verify() -> None:
                for chunk in chunks:
                    fetched = [await self._fetch(link_id, wrong) for link_id in chunk]
                    bundles = [one for one in fetched if one is not None]
                    rejected = await asyncio.get_running_loop().run_in_executor(pool, _rejected, bundles, self._trust)
                    wrong.extend(rejected)
                    self.verified += len(bundles)

            # Some are fetched while others are verified; no more than these are in memory.
            async with asyncio.TaskGroup() as tasks:
                for _ in range(_FETCHERS_A_CORE * cores):
                    tasks.create_task(verify())
        return Finding(
            "every closed link has a bundle that verifies", not wrong, _figures(wrong, len(closed), "bundles")
        )

    def _nothing_unasked(self, ended: Mapping[str, _Ended]) -> Finding:
        """Transfers that nobody was told of: a request accepted twice would be one."""
        strange = [
            one
            for one in ended
            if one not in self._accepted and not one.startswith("gap:") and one.rpartition(":")[0] not in self._accepted
        ]
        return Finding("no transfer that nobody asked for", not strange, _figures(strange, len(ended), "rows"))

    async def _fetch(self, link_id: str, wrong: list[str]) -> tuple[str, bytes] | None:
        try:
            return link_id, await self._client.get_bytes(f"/v1/links/{link_id}/bundle")
        except GaveUp as error:
            wrong.append(f"{link_id}: {error}")
            return None

    def _decided_rightly(self, ended: Mapping[str, _Ended]) -> Finding:
        """What waited for approvals was signed with as many as the policy asked for, which the log has, or never."""
        finalized = [one for one, end in ended.items() if end.state == "FINALIZED"]
        wrong = self.log.policy.wrongly_decided(self._accepted, finalized, self._requester)
        kinds = Counter(wish.kind for wish in self._accepted.values() if wish.kind in AWAITING)
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return Finding(
            "what needs approvals is signed with those that the log has, or never", not wrong, _shown(wrong, counted)
        )

    async def _mined(self) -> dict[tuple[str, int], int]:
        """(sender, value) → how often the chain has it, of our accounts, without transfers of nothing."""
        ours = {account.address for account in self._accounts}
        mined: defaultdict[tuple[str, int], int] = defaultdict(int)
        async with aiohttp.ClientSession() as http:
            latest = int(await _call(http, self._chain_url, "eth_blockNumber"), 16)
            for first in range(0, latest + 1, _BLOCKS_AT_ONCE):
                numbers = range(first, min(first + _BLOCKS_AT_ONCE, latest + 1))
                blocks = await asyncio.gather(
                    *(_call(http, self._chain_url, "eth_getBlockByNumber", hex(number), True) for number in numbers)
                )
                for tx in (tx for block in blocks for tx in block["transactions"]):
                    if tx["from"] in ours and int(tx["value"], 16):
                        mined[tx["from"], int(tx["value"], 16)] += 1
        return mined


def _rejected(bundles: Sequence[tuple[str, bytes]], trust_file: bytes) -> list[str]:
    """What the verifier says against them; runs in a process of its own."""
    trust = load_trust(trust_file)
    reports = [(link_id, verify_bundle(bundle, trust)) for link_id, bundle in bundles]
    return [
        f"{link_id}: {next((check.detail for check in report.checks if not check.ok), 'rejected')}"
        for link_id, report in reports
        if not report.accepted or report.link_id != link_id
    ]


def _figures(wrong: Sequence[str], counted: int, what: str = "entries") -> str:
    return _shown(wrong, f"{counted:,} {what}" if counted else "none")


def _shown(wrong: Sequence[str], otherwise: str) -> str:
    return f"{len(wrong)} are wrong: " + "; ".join(wrong[:_SHOWN]) if wrong else otherwise


async def _call(http: aiohttp.ClientSession, url: str, method: str, *parameters: Any) -> Any:
    call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(parameters)}
    async with http.post(url, json=call) as reply:
        return (await reply.json())["result"]
