"""The load: accounts, and the orders of the plan at a steady rate, each until it is accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.chaos.client import Client, GaveUp
from tools.chaos.deciding import Deciding, Undecided
from tools.chaos.plan import ACCOUNTS, Kind, Order, Wish

CHAIN_ID = "eip155:31337"
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Account:
    id: str
    address: str


async def make_accounts(client: Client) -> list[Account]:
    """The plan's accounts and the poor one, of one wallet; none has ether yet."""
    _, wallet = await client.post("/v1/wallets", {"id": "w-chaos", "name": "chaos"})
    accounts = []
    for index in range(ACCOUNTS + 1):
        body = {"chain_id": CHAIN_ID, "index": index}
        _, made = await client.post(f"/v1/wallets/{wallet['id']}/accounts", body)
        accounts.append(Account(made["id"], made["address"].lower()))
    return accounts


class Load:
    def __init__(self, client: Client, deciding: Deciding, accounts: Sequence[Account], rate_per_s: float) -> None:
        self._client = client
        self._deciding = deciding
        self._accounts = accounts
        self._rate_per_s = rate_per_s
        # What was answered 202, by transfer id.
        self.accepted: dict[str, Wish] = {}
        self.refused: list[str] = []
        self.cancellations: dict[int, int] = {}  # HTTP status → how often
        self.half_offered = asyncio.Event()

    async def run(self, orders: Sequence[Order]) -> None:
        """Return when every order is accepted or refused, every cancellation answered, and everything decided."""
        offered, all_ = 0, sum(len(order.wishes) for order in orders)
        slots = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for order in orders:
                await slots.acquire()
                task = tasks.create_task(self._place(order, tasks))
                task.add_done_callback(lambda _: slots.release())
                offered += len(order.wishes)
                if 2 * offered >= all_:
                    self.half_offered.set()
                await asyncio.sleep(len(order.wishes) / self._rate_per_s)

    async def _place(self, order: Order, tasks: asyncio.TaskGroup) -> None:
        bodies = [self._body(wish) for wish in order.wishes]
        try:
            if len(bodies) == 1:
                status, answer = await self._client.post("/v1/transfers", bodies[0], order.key)
                made = [answer]
            else:
                status, answer = await self._client.post("/v1/transfers:batch", {"transfers": bodies}, order.key)
                made = answer.get("transfers", [])
        except GaveUp as error:
            self.refused.append(str(error))
            return
        if status != 202:
            self.refused.append(f"{order.key}: {status} {answer}")
            return
        for wish, transfer in zip(order.wishes, made, strict=True):
            self.accepted[transfer["id"]] = wish
            if wish.kind is Kind.CANCELLED:
                tasks.create_task(self._cancel(transfer["id"], wish.after_s))
            elif wish.kind in (Kind.APPROVED, Kind.REJECTED):
                tasks.create_task(self._decide(transfer["id"], wish))

    async def _cancel(self, transfer_id: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        try:
            status, _ = await self._client.post(f"/v1/transfers/{transfer_id}:cancel", {})
        except GaveUp as error:
            self.refused.append(str(error))
            return
        self.cancellations[status] = self.cancellations.get(status, 0) + 1

    async def _decide(self, transfer_id: str, wish: Wish) -> None:
        await asyncio.sleep(wish.after_s)
        try:
            await self._deciding.decide(transfer_id, wish.kind)
        except (GaveUp, Undecided) as error:
            self.refused.append(str(error))

    def _body(self, wish: Wish) -> dict[str, Any]:
        return {
            "account_id": self._accounts[wish.account].id,
            "to": wish.to,
            "value_wei": str(wish.value_wei),
        }
