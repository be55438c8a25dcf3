"""What a node's answer to eth_sendRawTransaction means. JSON-RPC has no codes for it, so it goes by their words.

One table of the texts of geth, anvil, Erigon, Nethermind, Besu and reth, in lower case. Where one text holds another,
the longer stands first. What is not in it is `UNKNOWN`: refused, and tried again.
"""

from __future__ import annotations

import json
from enum import StrEnum

from services.broadcaster.submission import StallCause


class Meaning(StrEnum):
    ACCEPTED = "accepted"
    NONCE_SPENT = "nonce spent"  # by this transaction, by another of its transfer, or by somebody else's
    REPLACEMENT_UNDERPRICED = "replacement underpriced"
    UNDERPRICED = "underpriced"
    BELOW_BASE_FEE = "below base fee"
    INSUFFICIENT_FUNDS = "insufficient funds"
    NONCE_TOO_HIGH = "nonce too high"
    POOL_FULL = "pool full"
    GAS_TOO_LOW = "gas too low"
    GAS_ABOVE_BLOCK = "gas above block"
    FEE_ABOVE_CAP = "fee above cap"
    UNKNOWN = "unknown"


WORDS: tuple[tuple[str, Meaning], ...] = (
    # The node has it already.
    ("already known", Meaning.ACCEPTED),  # geth, reth, Erigon
    ("alreadyknown", Meaning.ACCEPTED),  # Nethermind
    ("known transaction", Meaning.ACCEPTED),  # Besu, geth before 1.9
    ("already imported", Meaning.ACCEPTED),  # anvil
    ("existing tx with same hash", Meaning.ACCEPTED),  # Erigon
    ("existing txn with same hash", Meaning.ACCEPTED),  # Erigon 3
    # The account's nonce is past it.
    ("nonce too low", Meaning.NONCE_SPENT),  # geth, reth, Erigon, anvil, Besu
    ("nonce is too low", Meaning.NONCE_SPENT),
    ("oldnonce", Meaning.NONCE_SPENT),  # Nethermind
    # A pool holds another transaction of this nonce, and the fees do not exceed its by enough.
    ("replacement transaction underpriced", Meaning.REPLACEMENT_UNDERPRICED),  # geth, reth, Erigon, Besu
    ("could not replace existing tx", Meaning.REPLACEMENT_UNDERPRICED),  # Erigon
    ("replacementnotallowed", Meaning.REPLACEMENT_UNDERPRICED),  # Nethermind
    ("replacement not allowed", Meaning.REPLACEMENT_UNDERPRICED),
    # The block's base fee is above what it pays at most.
    ("max fee per gas less than block base fee", Meaning.BELOW_BASE_FEE),  # geth, reth, anvil
    ("maxfeepergas too low", Meaning.BELOW_BASE_FEE),  # Nethermind
    ("gas price below current base fee", Meaning.BELOW_BASE_FEE),  # Besu
    ("max fee per gas below current base fee", Meaning.BELOW_BASE_FEE),
    # The node's own floor, or the price of a place in its pool, is above it.
    ("transaction underpriced", Meaning.UNDERPRICED),  # geth, reth, anvil (of a replacement too)
    ("transaction gas price below minimum", Meaning.UNDERPRICED),  # geth 1.16
    ("gas price below configured minimum", Meaning.UNDERPRICED),  # Besu
    ("priority fee per gas below configured minimum", Meaning.UNDERPRICED),  # Besu
    ("feetoolowtocompete", Meaning.UNDERPRICED),  # Nethermind
    ("feetoolow", Meaning.UNDERPRICED),  # Nethermind
    ("fee too low", Meaning.UNDERPRICED),  # Erigon
    ("underpriced", Meaning.UNDERPRICED),  # Erigon
    # The account cannot pay it, with what else of it is in the pool.
    ("insufficient funds", Meaning.INSUFFICIENT_FUNDS),  # geth, reth, Erigon, anvil
    ("insufficientfunds", Meaning.INSUFFICIENT_FUNDS),  # Nethermind
    ("upfront cost exceeds account balance", Meaning.INSUFFICIENT_FUNDS),  # Besu
    # The transactions before it are not with this node.
    ("nonce too high", Meaning.NONCE_TOO_HIGH),  # geth, reth
    ("noncegap", Meaning.NONCE_TOO_HIGH),  # Nethermind
    ("noncetoofarinfuture", Meaning.NONCE_TOO_HIGH),  # Nethermind
    ("nonce is too distant", Meaning.NONCE_TOO_HIGH),  # Besu
    ("nonce too distant", Meaning.NONCE_TOO_HIGH),
    # There is no room.
    ("txpool is full", Meaning.POOL_FULL),  # reth, geth before 1.17
    ("pool is full", Meaning.POOL_FULL),  # Erigon ("pending sub-pool is full"), Besu
    ("pool full", Meaning.POOL_FULL),
    ("pool overflow", Meaning.POOL_FULL),  # Erigon
    ("out of capacity", Meaning.POOL_FULL),  # geth 1.17
    ("account limit exceeded", Meaning.POOL_FULL),  # geth
    # Its gas limit is below what its bytes cost, or above what a block, or one transaction, may use.
    ("intrinsic gas too low", Meaning.GAS_TOO_LOW),  # geth, reth, Erigon, anvil, Nethermind
    ("intrinsic gas exceeds gas limit", Meaning.GAS_TOO_LOW),  # Besu
    ("insufficient gas for floor data gas cost", Meaning.GAS_TOO_LOW),  # geth, by EIP-7623
    ("exceeds block gas limit", Meaning.GAS_ABOVE_BLOCK),  # geth, reth, Besu
    ("gaslimitexceeded", Meaning.GAS_ABOVE_BLOCK),  # Nethermind
    ("gas limit too high", Meaning.GAS_ABOVE_BLOCK),  # geth, by EIP-7825
    ("gas limit is too high", Meaning.GAS_ABOVE_BLOCK),  # Erigon
    ("intrinsic gas too high", Meaning.GAS_ABOVE_BLOCK),  # anvil
    # The node's operator has set what a transaction may cost at most.
    ("exceeds the configured cap", Meaning.FEE_ABOVE_CAP),  # geth, reth, Erigon
    ("transaction fee cap exceeded", Meaning.FEE_ABOVE_CAP),  # Besu
)

# The node works, and another need not be asked.
SETTLED = frozenset({Meaning.ACCEPTED, Meaning.NONCE_SPENT})
# It may be otherwise in a moment, or with another node. The rest changes when fees, funds or the block limit do.
PASSING = frozenset({Meaning.NONCE_TOO_HIGH, Meaning.POOL_FULL, Meaning.UNKNOWN})
# No other fee changes it, or only a lower one.
BEYOND_FEES = frozenset({Meaning.GAS_TOO_LOW, Meaning.GAS_ABOVE_BLOCK, Meaning.FEE_ABOVE_CAP})

STALLS = {
    Meaning.REPLACEMENT_UNDERPRICED: StallCause.UNDERPRICED,
    Meaning.UNDERPRICED: StallCause.UNDERPRICED,
    Meaning.BELOW_BASE_FEE: StallCause.UNDERPRICED,
    Meaning.INSUFFICIENT_FUNDS: StallCause.INSUFFICIENT_FUNDS,
}


def refusal(element: bytes) -> Meaning:
    """The meaning of a JSON-RPC response that is not the result that was asked for."""
    try:
        document = json.loads(element)
    except (ValueError, RecursionError):
        return Meaning.UNKNOWN
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return Meaning.UNKNOWN
    # Some put the cause beside a general message.
    said = " ".join(str(text) for text in (error.get("message"), error.get("data")) if isinstance(text, str)).lower()
    return next((meaning for words, meaning in WORDS if words in said), Meaning.UNKNOWN)
