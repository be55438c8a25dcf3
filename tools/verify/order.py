"""The order of entries: which may follow which, the state they reach, and their times."""

from dataclasses import dataclass

from tools.verify.block import ProvenTx
from tools.verify.body import Inclusion, Intent, Request, Response, Revocation, Signature
from tools.verify.entry import Entry, of_kind
from tools.verify.refusal import Refused
from tools.verify.signing import SignedTx
from tools.verify.submission import Submission

PROGRESS = ("BUILT", "SIGNED", "SUBMITTED", "INCLUDED", "SAFE", "FINALIZED")
STATES = (*PROGRESS, "FAILED")

# Clocks of different machines: how far a time may run ahead of, or behind, the one that it must follow.
_CLOCK_SKEW_US = 5_000_000
_BLOCK_SKEW_US = 15_000_000


@dataclass(frozen=True, slots=True)
class Mined:
    """An inclusion entry, proven."""

    position: int
    body: Inclusion
    signed: SignedTx
    proven: ProvenTx


def reached_state(entries: list[Entry], submissions: list[Submission], mined: list[Mined]) -> str:
    """The state that the entries prove, after checking that each may stand where it stands."""
    if not isinstance(entries[0].body, Intent):
        raise Refused("the first entry is not an intent")
    mined_at = {m.position: m for m in mined}
    state = "BUILT"
    block_hash: bytes | None = None
    for position, entry in enumerate(entries):
        body = entry.body
        what = f"entry at step {position}: "
        if state in ("FINALIZED", "FAILED"):
            raise Refused(what + f"it follows {state}")
        if isinstance(body, Intent) and not body.is_allowed:
            if position:
                raise Refused(what + "a denied intent is not the first entry")
            state = "FAILED"
        elif isinstance(body, Signature):
            state = _at_least(state, "SIGNED")
        elif isinstance(body, Request):
            state = _at_least(state, "SUBMITTED")
        elif isinstance(body, Inclusion):
            if block_hash is not None:
                if body.block_hash != block_hash:
                    raise Refused(what + "its block is another, and no revocation named the one before")
                if PROGRESS.index(body.status.upper()) <= PROGRESS.index(state):
                    raise Refused(what + f"status {body.status} does not rise above {state}")
            if not _is_answered(mined_at[position], submissions):
                raise Refused(what + "no HTTP response to its transaction precedes it")
            state, block_hash = body.status.upper(), body.block_hash
        elif isinstance(body, Revocation):
            if body.block_hash != block_hash:
                raise Refused(what + "it revokes a block that no inclusion names")
            state, block_hash = "SUBMITTED", None
    return state


def _at_least(state: str, reached: str) -> str:
    return max(state, reached, key=PROGRESS.index)


def _is_answered(mined: Mined, submissions: list[Submission]) -> bool:
    return any(
        s.signed.raw_tx == mined.signed.raw_tx
        and s.response is not None
        and s.response.http_status is not None
        and s.response_position is not None
        and s.response_position < mined.position
        for s in submissions
    )


def check_required_state(state: str, required: str | None) -> None:
    """Without `required`: FINALIZED or denied. With it: that state or one further along; FAILED only if asked for."""
    if required is None:
        if state not in ("FINALIZED", "FAILED"):
            raise Refused(f"the link is open: {state}, neither FINALIZED nor denied")
    elif state != required and ("FAILED" in (state, required) or PROGRESS.index(state) < PROGRESS.index(required)):
        raise Refused(f"the link is {state}, not {required}")


def check_times(entries: list[Entry], submissions: list[Submission], mined: list[Mined]) -> None:
    """Times inside bodies agree with the log's and with one another."""
    for position, entry, intent in of_kind(entries, Intent):
        _check_not_ahead(intent.requested_at_us, entry, f"requested_at at step {position}")
    for position, entry, request in of_kind(entries, Request):
        _check_not_ahead(request.sent_at_us, entry, f"sent_at at step {position}")
    for position, entry, response in of_kind(entries, Response):
        _check_not_ahead(response.received_at_us, entry, f"received_at at step {position}")
    for s in submissions:
        if s.request.sent_at_us < s.signed.at_us - _CLOCK_SKEW_US:
            raise Refused(f"sent_at at step {s.position} is before the signature")
        if s.response is not None and s.response.received_at_us < s.request.sent_at_us - _CLOCK_SKEW_US:
            raise Refused(f"received_at at step {s.response_position} is before sent_at")
    for m in mined:
        if m.proven.timestamp_s * 1_000_000 < m.signed.intent.at_us - _BLOCK_SKEW_US:
            raise Refused(f"the block at step {m.position} is older than the intent")


def _check_not_ahead(time_us: int, entry: Entry, what: str) -> None:
    if time_us > entry.at_us + _CLOCK_SKEW_US:
        raise Refused(f"{what} is later than the entry")
