"""Rolling-window velocity: what still fits, in the order of a batch. Pure; `velocity_store` counts under a lock.

Source: the policy's asset rules. One transaction counts once, for its account and asset, in each of its windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from services.core.addresses import Address
from services.signer.policy import Count
from services.signer.rules import Asset


class Purse(NamedTuple):
    """Whose velocity, and of what: one lock, one sum for each window."""

    chain_id: int
    address: Address
    asset_name: str


class Candidate(NamedTuple):
    link_id: str
    address: Address
    counted: Count

    @property
    def purse(self) -> Purse:
        asset: Asset = self.counted.asset
        return Purse(asset.chain_id, self.address, asset.name)


Spent = Mapping[tuple[Purse, int], int]
"""By purse and window_s: what its windows hold already."""


def admit(candidates: Sequence[Candidate], spent: Spent) -> dict[str, str]:
    """Link id → the rule that refuses it; those that are not there fit, one after the other, beside each other."""
    held = dict(spent)
    refused: dict[str, str] = {}
    for one in candidates:
        counted = one.counted
        full = next(
            (window for window in counted.windows if held[one.purse, window.window_s] + counted.amount > window.limit),
            None,
        )
        if full is not None:
            refused[one.link_id] = (
                f"{counted.path}.velocity: {counted.amount} on top of {held[one.purse, full.window_s]} in "
                f"{full.window_s} s is above {full.limit}"
            )
            continue
        for window in counted.windows:
            held[one.purse, window.window_s] += counted.amount
    return refused


def with_spent(spent: Spent, entered: Sequence[Candidate]) -> Spent:
    """`spent`, and these."""
    held = dict(spent)
    for one in entered:
        for window in one.counted.windows:
            held[one.purse, window.window_s] += one.counted.amount
    return held
