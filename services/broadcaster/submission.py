"""A signed transaction that was handed over, and the rules it is taken under."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from services.core.entries import check_link_id
from services.core.errors import Reason, WalletError, refuse
from services.core.transactions import decode_raw, tx_hash
from services.runtime.telemetry import parse_traceparent

MAX_NONCE = 2**63 - 1  # of the rows; EIP-2681 would allow 2**64 - 2


class State(StrEnum):
    QUEUED = "QUEUED"
    # The request is committed here and may be in the log; whether a node has it is not known yet.
    REQUESTED = "REQUESTED"
    SUBMITTED = "SUBMITTED"
    INCLUDED = "INCLUDED"
    SAFE = "SAFE"
    FINALIZED = "FINALIZED"
    # A transaction that is not of this transfer has its nonce, and is finalized on k nodes.
    NONCE_SPENT = "NONCE_SPENT"


CLOSED = frozenset({State.FINALIZED, State.NONCE_SPENT})


class StallCause(StrEnum):
    """Why the newest transaction is not mined, or not shown as mined, as far as k nodes tell."""

    NOT_MINED = "NOT_MINED"
    UNDERPRICED = "UNDERPRICED"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    # It is in a block whose own time is so far before the intent's that the log does not take it.
    CHAIN_CLOCK = "CHAIN_CLOCK"


@dataclass(frozen=True, slots=True)
class NewSubmission:
    """What gateway hands over, checked."""

    transfer_id: str
    tx_hash: bytes
    chain_id: str
    account: bytes
    nonce: int
    raw_tx: bytes
    traceparent: str


@dataclass(frozen=True, slots=True)
class Submission:
    """Where a submission stands, for its caller. Block fields are None before inclusion.

    `tx_hash` is the mined transaction's, else the newest one's.
    """

    transfer_id: str
    tx_hash: bytes
    state: State
    block_number: int | None
    block_hash: bytes | None
    receipt_status: int | None
    stall: StallCause | None
    newest_tx_hash: bytes


def check_submission(
    transfer_id: str, chain_id: str, from_address: bytes, nonce: int, raw_tx: bytes, traceparent: str
) -> NewSubmission:
    """The submission, once the raw transaction is what the other fields say.

    Who signed it is not looked at: that costs more than all the rest, and signer has done it. The log takes no request
    with a raw transaction that was not signed in its link, and nothing is sent that the log has not taken. A wrong
    `from_address` only makes its own transaction wait in a wrong queue.

    Raises:
        WalletError: INVALID_REQUEST, naming field and rule.
    """
    if len(from_address) != 20:
        refuse("from_address", "has 20 bytes")
    check_link_id(transfer_id, "transfer_id")
    if parse_traceparent(traceparent) is None:
        refuse("traceparent", "is a W3C traceparent")
    tx, _ = decode_raw(raw_tx)
    if chain_id != f"eip155:{tx.chain_id}":
        refuse("chain_id", "is that of raw_tx")
    if nonce != tx.nonce:
        refuse("nonce", "is that of raw_tx")
    if nonce > MAX_NONCE:
        refuse("nonce", f"is at most {MAX_NONCE}")
    return NewSubmission(transfer_id, tx_hash(raw_tx), chain_id, from_address, nonce, raw_tx, traceparent)


def is_replacement(raw_tx: bytes, other: bytes) -> bool:
    """Whether two raw transactions of one account differ in nothing but fees, gas limit and form."""
    (one, _), (two, _) = decode_raw(raw_tx), decode_raw(other)
    return (one.chain_id, one.nonce, one.to, one.value_wei, one.data) == (
        two.chain_id,
        two.nonce,
        two.to,
        two.value_wei,
        two.data,
    )


def taken(field: str) -> WalletError:
    """The refusal of a transfer id or a transaction that is stored with another partner."""
    return WalletError(Reason.ALREADY_EXISTS, "the submission is stored otherwise", field=field)
