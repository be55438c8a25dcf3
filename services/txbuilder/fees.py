"""What a transaction pays: pure arithmetic over a fee history."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from services.core.errors import Reason, WalletError

# The default of geth, and of those who follow it.
_PRICE_BUMP_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Market:
    """The chain's head as fees see it. Wei per gas."""

    block_number: int
    block_gas_limit: int
    # Of the next block.
    base_fee_wei: int
    priority_fee_wei: int


@dataclass(frozen=True, slots=True)
class Fees:
    """Fee options of a request, decimal strings parsed; None is estimated. Wei per gas."""

    gas_limit: int | None = None
    gas_price_wei: int | None = None
    max_fee_per_gas_wei: int | None = None
    max_priority_fee_per_gas_wei: int | None = None


def priority_fee(rewards_wei: list[int], default_wei: int) -> int:
    """The median of the tips that recent blocks took; `default_wei` where there were none."""
    paid = [reward for reward in rewards_wei if reward > 0]
    return int(statistics.median_low(paid)) if paid else default_wei


def dynamic_fee(fees: Fees, market: Market) -> tuple[int, int]:
    """(max_fee, max_priority_fee) per gas. Without a cap of the caller's the base fee may double before it is reached.

    Raises:
        WalletError: FEE_CAP_BELOW_BASE_FEE for a cap that the next block would not take.
    """
    cap = fees.max_fee_per_gas_wei
    tip = fees.max_priority_fee_per_gas_wei
    if tip is None:
        tip = market.priority_fee_wei if cap is None else min(market.priority_fee_wei, cap)
    if cap is None:
        cap = 2 * market.base_fee_wei + tip
    check_cap("max_fee_per_gas_wei", cap, market)
    return cap, tip


def gas_price(fees: Fees, market: Market) -> int:
    """The price of a legacy or EIP-2930 transaction: an eighth above the base fee for one full block, and the tip.

    Raises:
        WalletError: FEE_CAP_BELOW_BASE_FEE for a price that the next block would not take.
    """
    price = fees.gas_price_wei
    if price is None:
        # EIP-1559: the base fee grows by at most an eighth from block to block.
        price = market.base_fee_wei + market.base_fee_wei // 8 + 1 + market.priority_fee_wei
    check_cap("gas_price_wei", price, market)
    return price


@dataclass(frozen=True, slots=True)
class Bid:
    """What a transaction offers, wei per gas. A legacy or EIP-2930 one offers its price as both."""

    max_fee_wei: int
    priority_fee_wei: int


def outbid(known: Sequence[Bid], market: Market, cap_wei: int, *, one_price: bool) -> Bid:
    """A bid that nodes take in place of every one of `known`, and at least the market's, up to `cap_wei`.

    Source: go-ethereum, `core/txpool/legacypool/list.go`, `list.Add`: both fees 10 % up, and above what they were.

    Raises:
        WalletError: FEE_CAP_REACHED, with what is needed, when the nodes' rule or the next block asks for more than
            `cap_wei`.
    """
    max_fee = max((_raised(bid.max_fee_wei) for bid in known), default=0)
    tip = max((_raised(bid.priority_fee_wei) for bid in known), default=0)
    if one_price:
        max_fee = tip = max(max_fee, tip)
    field = "gas_price_wei" if one_price else "max_fee_per_gas_wei"
    check_fee_cap(field, max(max_fee, market.base_fee_wei), cap_wei)
    if one_price:
        price = max(max_fee, min(gas_price(Fees(), market), cap_wei))
        return Bid(price, price)
    market_fee, market_tip = dynamic_fee(Fees(), market)
    max_fee = max(max_fee, min(market_fee, cap_wei))
    return Bid(max_fee, min(max(tip, market_tip), max_fee))


def check_fee_cap(field: str, needed_wei: int, cap_wei: int) -> None:
    """Raises WalletError FEE_CAP_REACHED; wei per gas."""
    if needed_wei > cap_wei:
        raise WalletError(
            Reason.FEE_CAP_REACHED,
            Reason.FEE_CAP_REACHED.meaning,
            field=field,
            rule=f"is at most {cap_wei}",
            needed_wei=str(needed_wei),
            cap_wei=str(cap_wei),
        )


def _raised(fee_wei: int) -> int:
    return max(-(-fee_wei * (100 + _PRICE_BUMP_PERCENT) // 100), fee_wei + 1)


def check_cap(field: str, cap_wei: int, market: Market) -> None:
    if cap_wei < market.base_fee_wei:
        raise WalletError(
            Reason.FEE_CAP_BELOW_BASE_FEE,
            f"{field} is below the next block's base fee",
            field=field,
            rule=f"is at least {market.base_fee_wei}",
        )


def check_gas_limit(gas_limit: int, market: Market) -> None:
    if gas_limit > market.block_gas_limit:
        raise WalletError(
            Reason.GAS_LIMIT_ABOVE_BLOCK,
            "gas_limit is above the block's gas limit",
            field="gas_limit",
            rule=f"is at most {market.block_gas_limit}",
        )


def with_margin(gas: int, percent: int, market: Market) -> int:
    """An estimate with its margin, never above what a block holds."""
    return min(gas + gas * percent // 100, market.block_gas_limit)


def intrinsic_gas(data: bytes, creates: bool) -> int:
    """Gas that a transaction costs before a single instruction runs. Sources: EIP-2028, EIP-2, EIP-3860."""
    zeros = data.count(0)
    gas = 21_000 + 4 * zeros + 16 * (len(data) - zeros)
    return gas + 32_000 + 2 * ((len(data) + 31) // 32) if creates else gas
