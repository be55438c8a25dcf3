"""Each node's own words, as their sources have them, mean what they should. Nothing is understood by luck."""

from __future__ import annotations

import json

import pytest

from services.broadcaster.refusals import BEYOND_FEES, PASSING, SETTLED, STALLS, WORDS, Meaning, refusal
from services.broadcaster.submission import StallCause
from services.broadcaster.verdicts import Verdicts

# (what the node says, its meaning); the node's name is for whoever reads.
SAID = [
    # geth 1.17: core/txpool/errors.go, core/error.go and core/txpool/validation.go
    ("already known", Meaning.ACCEPTED),
    ("nonce too low: next nonce 5, tx nonce 3", Meaning.NONCE_SPENT),
    ("nonce too high: tx nonce 9, gapped nonce 5", Meaning.NONCE_TOO_HIGH),
    ("replacement transaction underpriced", Meaning.REPLACEMENT_UNDERPRICED),
    ("transaction underpriced", Meaning.UNDERPRICED),
    ("transaction gas price below minimum: gas tip cap 1, minimum needed 1000000", Meaning.UNDERPRICED),
    (
        "max fee per gas less than block base fee: address 0x01, maxFeePerGas: 1, baseFee: 875000000",
        Meaning.BELOW_BASE_FEE,
    ),
    ("insufficient funds for gas * price + value: balance 0, tx cost 1, overshot 1", Meaning.INSUFFICIENT_FUNDS),
    ("insufficient funds for transfer", Meaning.INSUFFICIENT_FUNDS),
    ("out of capacity", Meaning.POOL_FULL),
    ("account limit exceeded: pooled 16 txs", Meaning.POOL_FULL),
    ("intrinsic gas too low: gas 20000, minimum needed 21000", Meaning.GAS_TOO_LOW),
    ("insufficient gas for floor data gas cost: gas 21000, minimum needed 22000", Meaning.GAS_TOO_LOW),
    ("exceeds block gas limit", Meaning.GAS_ABOVE_BLOCK),
    ("transaction gas limit too high (cap: 16777216, tx: 30000000)", Meaning.GAS_ABOVE_BLOCK),
    ("tx fee (4.00 ether) exceeds the configured cap (1.00 ether)", Meaning.FEE_ABOVE_CAP),
    # geth before
    ("txpool is full", Meaning.POOL_FULL),
    ("known transaction: 88df016429689c07", Meaning.ACCEPTED),
    # anvil 1.7
    ("transaction already imported", Meaning.ACCEPTED),
    ("nonce too low", Meaning.NONCE_SPENT),
    ("transaction underpriced", Meaning.UNDERPRICED),
    ("Insufficient funds for gas * price + value", Meaning.INSUFFICIENT_FUNDS),
    ("max fee per gas less than block base fee", Meaning.BELOW_BASE_FEE),
    ("intrinsic gas too low", Meaning.GAS_TOO_LOW),
    ("intrinsic gas too high -- tx.gas_limit > env.cfg.tx_gas_limit_cap", Meaning.GAS_ABOVE_BLOCK),
    # reth
    ("nonce too low: next nonce 5, tx nonce 3", Meaning.NONCE_SPENT),
    ("txpool is full", Meaning.POOL_FULL),
    ("insufficient funds for gas * price + value: have 0 want 1", Meaning.INSUFFICIENT_FUNDS),
    # Erigon
    ("existing tx with same hash", Meaning.ACCEPTED),
    ("could not replace existing tx", Meaning.REPLACEMENT_UNDERPRICED),
    ("underpriced", Meaning.UNDERPRICED),
    ("fee too low", Meaning.UNDERPRICED),
    ("pending sub-pool is full", Meaning.POOL_FULL),
    ("insufficient funds", Meaning.INSUFFICIENT_FUNDS),
    ("gas limit is too high", Meaning.GAS_ABOVE_BLOCK),
    # Nethermind
    ("AlreadyKnown", Meaning.ACCEPTED),
    ("OldNonce, Current nonce: 5, nonce of rejected tx: 3", Meaning.NONCE_SPENT),
    ("NonceGap, Future nonce. Expected nonce: 5", Meaning.NONCE_TOO_HIGH),
    ("ReplacementNotAllowed", Meaning.REPLACEMENT_UNDERPRICED),
    ("FeeTooLow, MaxFeePerGas too low. MaxFeePerGas: 1, BaseFee: 7, ...", Meaning.BELOW_BASE_FEE),
    ("FeeTooLowToCompete", Meaning.UNDERPRICED),
    ("InsufficientFunds, Account balance: 0, cumulative cost: 1", Meaning.INSUFFICIENT_FUNDS),
    ("GasLimitExceeded, Gas limit: 30000000, gas limit of rejected tx: 40000000", Meaning.GAS_ABOVE_BLOCK),
    # Besu
    ("Known transaction", Meaning.ACCEPTED),
    ("Nonce too low", Meaning.NONCE_SPENT),
    ("Replacement transaction underpriced", Meaning.REPLACEMENT_UNDERPRICED),
    ("Gas price below configured minimum gas price", Meaning.UNDERPRICED),
    ("Gas price below current base fee", Meaning.BELOW_BASE_FEE),
    ("Upfront cost exceeds account balance", Meaning.INSUFFICIENT_FUNDS),
    ("Intrinsic gas exceeds gas limit", Meaning.GAS_TOO_LOW),
    ("Transaction gas limit exceeds block gas limit", Meaning.GAS_ABOVE_BLOCK),
    ("Transaction nonce is too distant from current sender nonce", Meaning.NONCE_TOO_HIGH),
    ("Transaction fee cap exceeded", Meaning.FEE_ABOVE_CAP),
    # Nobody's
    ("", Meaning.UNKNOWN),
    ("the backend is rate limited", Meaning.UNKNOWN),
]


def element(message: object, **more: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": message, **more}}).encode()


@pytest.mark.parametrize(("said", "meaning"), SAID)
def test_what_nodes_say(said: str, meaning: Meaning) -> None:
    assert refusal(element(said)) is meaning


@pytest.mark.parametrize(("words", "meaning"), WORDS)
def test_every_line_of_the_table_is_reached(words: str, meaning: Meaning) -> None:
    """Also where a shorter text of another meaning is within it: the order decides."""
    assert words == words.lower()
    assert refusal(element(f"Error: {words.title()}.")) is meaning


def test_the_cause_may_stand_in_data() -> None:
    assert refusal(element("Transaction rejected", data="nonce too low")) is Meaning.NONCE_SPENT


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>nonce too low</html>",
        b'"nonce too low"',
        b'{"error": "nonce too low"}',
        b'{"error": {"message": ["nonce too low"]}}',
        b'{"result": "already known"}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_rpc_error_means_nothing(answer: bytes) -> None:
    assert refusal(answer) is Meaning.UNKNOWN


def test_every_meaning_has_one_treatment() -> None:
    treated = [SETTLED, PASSING, frozenset(STALLS), BEYOND_FEES]
    assert sorted(meaning for group in treated for meaning in group) == sorted(Meaning)


def test_one_node_stalls_nothing_and_two_do() -> None:
    verdicts = Verdicts(2)
    verdicts.note(b"a", "node-a", Meaning.UNDERPRICED)
    verdicts.note(b"a", "node-a", Meaning.REPLACEMENT_UNDERPRICED)
    assert verdicts.stall(b"a") is None
    verdicts.note(b"a", "node-b", Meaning.INSUFFICIENT_FUNDS)
    assert verdicts.stall(b"a") is None
    verdicts.note(b"a", "node-c", Meaning.BELOW_BASE_FEE)
    assert verdicts.stall(b"a") is StallCause.UNDERPRICED
    assert verdicts.stall(b"b") is None


def test_a_node_that_takes_it_later_has_not_refused_it() -> None:
    verdicts = Verdicts(2)
    for node in ("node-a", "node-b"):
        verdicts.note(b"a", node, Meaning.INSUFFICIENT_FUNDS)
    assert verdicts.stall(b"a") is StallCause.INSUFFICIENT_FUNDS
    verdicts.note(b"a", "node-b", Meaning.ACCEPTED)
    assert verdicts.stall(b"a") is None


def test_what_no_fee_mends_is_known_from_two() -> None:
    verdicts = Verdicts(2)
    verdicts.note(b"a", "node-a", Meaning.GAS_TOO_LOW)
    assert not verdicts.is_beyond_fees(b"a")
    verdicts.note(b"a", "node-c", Meaning.FEE_ABOVE_CAP)
    assert verdicts.is_beyond_fees(b"a")
    assert verdicts.stall(b"a") is None
