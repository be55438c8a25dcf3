"""What a seed decides: which transfers are wished for, by which requests, and in what order."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

ACCOUNTS = 4
_LARGEST_BATCH = 60
_BURN_ADDRESS = "0x000000000000000000000000000000000000dead"


class Kind(StrEnum):
    """What a transfer is meant to end as; a cancelled one may be mined first."""

    PLAIN = "plain"
    DENIED = "denied"  # by policy: its receiver is a burn address
    POOR = "poor"  # its account has nothing
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Wish:
    """One transfer. Its amount is its own: by it the chain tells which transfer was mined."""

    number: int
    kind: Kind
    account: int  # index; the last one is the poor one
    to: str
    cancel_after_s: float

    @property
    def value_wei(self) -> int:
        return self.number + 1


@dataclass(frozen=True, slots=True)
class Order:
    """One request: a single transfer, or a batch."""

    key: str  # Idempotency-Key
    wishes: tuple[Wish, ...]


def make_orders(seed: int, transfers: int) -> list[Order]:
    rng = random.Random(f"load {seed}")  # noqa: S311 - to be repeated, not to be secret
    orders: list[Order] = []
    number = 0
    while number < transfers:
        size = 1 if rng.random() < 0.5 else rng.randint(2, _LARGEST_BATCH)
        size = min(size, transfers - number)
        account = rng.randrange(ACCOUNTS)
        wishes = tuple(_wish(rng, number + place, account) for place in range(size))
        orders.append(Order(f"chaos-{seed}-{number}", wishes))
        number += size
    return orders


def _wish(rng: random.Random, number: int, account: int) -> Wish:
    kind = rng.choices(list(Kind), weights=[92, 3, 2, 3])[0]
    return Wish(
        number=number,
        kind=kind,
        account=ACCOUNTS if kind is Kind.POOR else account,
        to=_BURN_ADDRESS if kind is Kind.DENIED else f"0x{rng.randbytes(20).hex()}",
        cancel_after_s=rng.uniform(0.0, 3.0),
    )
