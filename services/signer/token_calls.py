"""Calls that move a token, or let somebody else move it, and the amount that they are about. Pure.

Source: EIP-20, "Methods"; Solidity's Contract ABI Specification. Arguments are read strictly: what has bytes before, in
between or behind that the encoding does not ask for has no amount, for another reader might see another one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from services.core.addresses import Address
from services.core.digests import keccak256

WORD = 32
_PADDING: Final = bytes(12)  # of an address


class TokenCall(NamedTuple):
    """A call of one of the functions below."""

    counterparty: Address | None  # who is paid or empowered; None where the call is too short to say
    amount: int | None  # in the token's smallest unit; None where the arguments are not in their one form


class _Function(NamedTuple):
    addresses: int  # arguments that are addresses, all before the amount
    counterparty: int  # which of them


def _selector(signature: str) -> bytes:
    return keccak256(signature.encode())[:4]


_FUNCTIONS: Final = {
    _selector("transfer(address,uint256)"): _Function(1, 0),
    _selector("transferFrom(address,address,uint256)"): _Function(2, 1),
    _selector("approve(address,uint256)"): _Function(1, 0),
    # Of OpenZeppelin's and older tokens.
    _selector("increaseAllowance(address,uint256)"): _Function(1, 0),
    _selector("increaseApproval(address,uint256)"): _Function(1, 0),
}


def read_token_call(data: bytes) -> TokenCall | None:
    """What call data does to the token that is called; None if it is of no function above."""
    function = _FUNCTIONS.get(data[:4])
    if function is None:
        return None
    words = [data[start : start + WORD] for start in range(4, len(data), WORD)]
    # Who it is for is read leniently: a denied address with dirt before it is still denied.
    receiver = words[function.counterparty] if function.counterparty < len(words) else b""
    counterparty = Address(receiver[12:]) if len(receiver) == WORD else None
    exact = len(data) == 4 + WORD * (function.addresses + 1)
    if not exact or any(not word.startswith(_PADDING) for word in words[: function.addresses]):
        return TokenCall(counterparty, None)
    return TokenCall(counterparty, int.from_bytes(words[-1], "big"))
