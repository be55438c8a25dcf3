"""Amounts as people write them."""

from __future__ import annotations

import re

from tools.goldenlink.exits import Exit, Failure

_DECIMALS = {"wei": 0, "gwei": 9, "ether": 18, "eth": 18}
_AMOUNT = re.compile(r"([0-9]{1,78})(?:\.([0-9]{1,78}))?([a-z]*)", re.ASCII)


def parse_value(text: str, option: str = "--value") -> str:
    """wei as a decimal string, of `1000`, `5 gwei`, `0.25ether`; exact, never rounded."""
    match = _AMOUNT.fullmatch(text.lower().replace(" ", "").replace("_", ""))
    if match is None:
        raise Failure(Exit.USAGE, f"{option}: '{text}' is not an amount")
    whole, fraction, unit = match[1], (match[2] or "").rstrip("0"), match[3] or "wei"
    if unit not in _DECIMALS:
        raise Failure(Exit.USAGE, f"{option}: '{unit}' is none of {', '.join(_DECIMALS)}")
    if len(fraction) > _DECIMALS[unit]:
        raise Failure(Exit.USAGE, f"{option}: '{text}' is not a whole number of wei")
    return str(int(whole + fraction.ljust(_DECIMALS[unit], "0")))


def show_wei(wei: str) -> str:
    """The amount in the unit that a person would choose."""
    value = int(wei)
    for unit in ("ether", "gwei"):
        one = 10 ** _DECIMALS[unit]
        # With at most six decimals it reads better than in the unit below.
        if value and value % (one // 10**6) == 0:
            whole, fraction = divmod(value, one)
            return f"{whole}.{fraction:0{_DECIMALS[unit]}d}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{value} wei"
