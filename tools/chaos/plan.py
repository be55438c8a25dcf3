"""What a seed decides: which transfers are wished for, by which requests, and in what order."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from tools.chaos.policies import BURN_ADDRESS, THRESHOLD_WEI

ACCOUNTS = 4
_LARGEST_BATCH = 60
# Few: the development chain keeps all balances anew with each block.
_RECEIVERS = 256
# What nobody decides about ends when its time is over: asked for early, it does so while the load goes on.
_EARLY = 0.25


class Kind(StrEnum):
    """What a transfer is meant to end as; a cancelled one may be mined first."""

    PLAIN = "plain"
    DENIED = "denied"  # by policy: its receiver is a burn address
    POOR = "poor"  # its account has nothing
    CANCELLED = "cancelled"
    # Of an amount that waits for approvals.
    APPROVED = "approved"
    REJECTED = "rejected"
    UNDECIDED = "undecided"  # nobody says anything, until it is too late


_WEIGHTS = {
    Kind.PLAIN: 88,
    Kind.DENIED: 3,
    Kind.POOR: 2,
    Kind.CANCELLED: 3,
    Kind.APPROVED: 3,
    Kind.REJECTED: 1,
    Kind.UNDECIDED: 2,
}
AWAITING = frozenset({Kind.APPROVED, Kind.REJECTED, Kind.UNDECIDED})
NEVER_MINED = frozenset({Kind.DENIED, Kind.POOR, Kind.REJECTED, Kind.UNDECIDED})


@dataclass(frozen=True, slots=True)
class Wish:
    """One transfer. Its amount is its own: by it the chain tells which transfer was mined."""

    number: int
    kind: Kind
    account: int  # index; the last one is the poor one
    to: str
    # When it is cancelled, or decided about, after it was accepted.
    after_s: float

    @property
    def value_wei(self) -> int:
        return self.number + 1 + (THRESHOLD_WEI if self.kind in AWAITING else 0)


@dataclass(frozen=True, slots=True)
class Order:
    """One request: a single transfer, or a batch."""

    key: str  # Idempotency-Key
    wishes: tuple[Wish, ...]


def make_orders(seed: int, transfers: int) -> list[Order]:
    """`transfers` is less than THRESHOLD_WEI."""
    rng = random.Random(f"load {seed}")  # noqa: S311 - to be repeated, not to be secret
    orders: list[Order] = []
    number = 0
    while number < transfers:
        size = 1 if rng.random() < 0.5 else rng.randint(2, _LARGEST_BATCH)
        size = min(size, transfers - number)
        account = rng.randrange(ACCOUNTS)
        early = number < transfers * _EARLY
        wishes = tuple(_wish(rng, number + place, account, early) for place in range(size))
        orders.append(Order(f"chaos-{seed}-{number}", wishes))
        number += size
    return orders


def _wish(rng: random.Random, number: int, account: int, early: bool) -> Wish:
    kind = rng.choices(list(_WEIGHTS), weights=list(_WEIGHTS.values()))[0]
    if kind is Kind.UNDECIDED and not early:
        kind = Kind.PLAIN
    return Wish(
        number=number,
        kind=kind,
        account=ACCOUNTS if kind is Kind.POOR else account,
        to=BURN_ADDRESS if kind is Kind.DENIED else f"0x5e{rng.randrange(_RECEIVERS):038x}",
        after_s=rng.uniform(0.0, 3.0),
    )
