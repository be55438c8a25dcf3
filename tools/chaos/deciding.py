"""The people who decide: two approvers, about transfers that wait for them and about a change of the policy."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any

from tools.chaos.client import Client
from tools.chaos.plan import Kind

# Who holds a token, by name, and the role that it has.
OPERATOR = "olga"
APPROVERS = ("ann", "bob")
HOLDERS = {OPERATOR: "operator", **dict.fromkeys(APPROVERS, "approver")}
_LOOK_S = 0.5
_DECIDED_WITHIN_S = 120.0
_CHANGED_WITHIN_S = 120.0
# Not decided about yet, or not any more.
_UNDECIDED_STATES = frozenset({"ACCEPTED", "AWAITING_APPROVAL"})
_OPEN_PROPOSALS = frozenset({"PROPOSED", "APPROVED"})


class Undecided(Exception):
    """Something that was decided did not take place; the text says what the gateway showed last."""


class Deciding:
    def __init__(self, client: Client) -> None:
        self._client = client
        # (what was said, HTTP status) → how often
        self.answers: Counter[tuple[str, int]] = Counter()

    async def decide(self, transfer_id: str, kind: Kind) -> None:
        """Say what a transfer of this kind is to hear, as often as it is asked for, until it waits no longer.

        Raises:
            Undecided: it waits still, or the gateway does not take it.
            GaveUp: the gateway does not answer.
        """
        word = "approve" if kind is Kind.APPROVED else "reject"
        said: set[str] = set()
        transfer: dict[str, Any] = {}
        give_up_at = time.monotonic() + _DECIDED_WITHIN_S
        while time.monotonic() < give_up_at:
            transfer = json.loads(await self._client.get_bytes(f"/v1/transfers/{transfer_id}"))
            if transfer["state"] not in _UNDECIDED_STATES:
                return
            if transfer["state"] == "AWAITING_APPROVAL":
                # A change of the policy may ask for one more.
                needed = transfer["approval"]["count"] if kind is Kind.APPROVED else 1
                for approver in APPROVERS[:needed]:
                    if approver not in said:
                        await self._say(word, transfer, approver, said)
            await asyncio.sleep(_LOOK_S)
        raise Undecided(f"{transfer_id} ({kind}) is {transfer['state']} after {_DECIDED_WITHIN_S:g} s")

    async def _say(self, word: str, transfer: dict[str, Any], approver: str, said: set[str]) -> None:
        path, body = f"/v1/transfers/{transfer['id']}:{word}", {"terms_sha256": transfer["terms_sha256"]}
        status, answer = await self._client.post(path, body, holder=approver)
        self.answers[word, status] += 1
        if status == 200:
            said.add(approver)
        elif answer.get("reason") != "TRANSFER_CLOSED":
            # That one says: no longer waiting, which the next look tells.
            raise Undecided(f"{path} by {approver}: {status} {answer}")

    async def change_policy(self, document: str) -> float:
        """Have a policy proposed, approved by both, and put in force; since when the gateway says so (Unix, seconds).

        Raises:
            Undecided, GaveUp: as `decide`.
        """
        status, proposal = await self._client.post("/v1/policies", {"document": document}, holder=OPERATOR)
        if status != 201:
            raise Undecided(f"the policy is not taken: {status} {proposal}")
        for approver in APPROVERS:
            status, answer = await self._client.post(f"/v1/policies/{proposal['sha256']}:approve", {}, holder=approver)
            if status != 200:
                raise Undecided(f"the policy is not approved by {approver}: {status} {answer}")
        give_up_at = time.monotonic() + _CHANGED_WITHIN_S
        while time.monotonic() < give_up_at and proposal["state"] in _OPEN_PROPOSALS:
            found = json.loads(await self._client.get_bytes("/v1/policies"))["policies"]
            proposal = next(one for one in found if one["sha256"] == proposal["sha256"])
            if proposal["state"] == "IN_FORCE":
                return time.time()
            await asyncio.sleep(_LOOK_S)
        raise Undecided(f"the policy is {proposal['state']}: {proposal['failure']}")
