"""What a policy can say: about everything, or about one account. Values only; `policy` decides by them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, NamedTuple, TypeVar

from services.core.addresses import Address
from services.core.amounts import format_chain_id

T = TypeVar("T")

NATIVE = "native"
MINUTES_A_DAY = 24 * 60


class Asset(NamedTuple):
    """What is moved: the chain's own coin, or a token by its contract."""

    chain_id: int
    token: Address | None  # None is the coin

    @property
    def name(self) -> str:
        """Within its chain, as the database and an account's rules have it."""
        return NATIVE if self.token is None else f"erc20:0x{self.token.hex()}"

    @property
    def path(self) -> str:
        """Among all chains: CAIP-19, but for the coin, which has a number there and a name here."""
        return f"{format_chain_id(self.chain_id)}/{self.name}"


class Window(NamedTuple):
    """At most `limit` (smallest units) within any `window_s` seconds."""

    window_s: int
    limit: int


class Approver(NamedTuple):
    """Who may approve. With a key, only what that key has signed is this one's approval."""

    name: str
    key: str | None = None  # its fingerprint: sha256: and the hex SHA-256 of its DER


class ApprovalRule(NamedTuple):
    """Amounts above `above` need `needed` approvers; an approval counts for `valid_s` seconds."""

    above: int
    needed: int
    valid_s: int
    approvers: tuple[Approver, ...]  # in the order of names; empty is every approver

    @property
    def names(self) -> tuple[str, ...]:
        return names_of(self.approvers)


class AssetRule(NamedTuple):
    """Of one asset, for one account or for each: amounts are in the asset's smallest unit."""

    path: str
    per_transfer: int
    velocity: tuple[Window, ...] = ()
    approval: ApprovalRule | None = None


class Hours(NamedTuple):
    """A daily span, UTC, from its first minute to before its last."""

    days: frozenset[int]  # Monday is 0
    from_minute: int
    to_minute: int

    def contains(self, at: datetime) -> bool:
        here = at.astimezone(UTC)
        return here.weekday() in self.days and self.from_minute <= here.hour * 60 + here.minute < self.to_minute


def is_open(hours: Iterable[Hours], at: datetime) -> bool:
    return any(span.contains(at) for span in hours)


def names_of(approvers: Iterable[Approver]) -> tuple[str, ...]:
    return tuple(one.name for one in approvers)


class Lists(NamedTuple, Generic[T]):
    """An allow and a deny list."""

    path: str
    allow: frozenset[T] | None  # None is "any"
    deny: frozenset[T]
    states_allow: bool = True  # an account's list that does not leaves it to the general one


@dataclass(frozen=True, slots=True)
class Rules:
    """What is said of everything, or of one account: a section of an account's stands instead of the general one, but
    for deny lists, which add up. None is a section that is not there."""

    path: str  # what texts begin with: empty, or the account's
    destinations: Lists[Address] | None
    selectors: Lists[bytes] | None
    contract_creation: bool | None
    hours: tuple[Hours, ...] | None
    assets: dict[Asset, AssetRule] | None
