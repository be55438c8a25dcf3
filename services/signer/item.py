"""One transaction on its way through the signing steps, and what stored bodies mean for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from services.core.addresses import Address, address_of_public_key
from services.core.canonical import from_hex
from services.core.digests import Digest, recover_public_key
from services.core.entries import Kind
from services.core.errors import Reason, WalletError
from services.core.transactions import decode_raw
from services.runtime.evidence_log import Entry
from services.runtime.transfer_span import TransferSpan
from services.signer.bodies import Intended, Requester
from services.signer.leaves import Leaf
from services.signer.policy import Decision
from services.signer.replacing import check_superseding
from services.signer.store import NonceKey, Registered

_UNDECIDED: Final = Decision(False, ())


class SigningRequest(NamedTuple):
    transfer_id: str
    unsigned_tx: bytes
    from_address: Address
    key_id: str
    key_version: int
    requester: Requester
    traceparent: str
    supersedes: str | None = None  # of a superseding link; empty for a nonce that was given back


class SignedTransaction(NamedTuple):
    transfer_id: str
    raw_tx: bytes
    tx_hash: bytes
    intent_index: int
    signature_index: int


@dataclass(slots=True)
class Item:
    """One transaction on its way through the steps; `error` set means that it has dropped out."""

    request: SigningRequest
    intended: Intended
    key: NonceKey
    span: TransferSpan
    decision: Decision = _UNDECIDED
    leaf: Leaf | None = None
    leaf_error: WalletError | None = None
    approvals: tuple[bytes, ...] = ()  # leaf hashes of those that count
    held_back: WalletError | None = None  # why it is not entered where it has no row yet
    attempt: int = 1
    error: WalletError | None = None
    intent_body: bytes = b""
    intent_index: int | None = None
    signature_body: bytes | None = None
    raw_tx: bytes = b""
    tx_hash: bytes = b""
    signature_index: int | None = None
    duration_ms: float | None = None
    unsigned_before: bool = False  # an earlier call came as far as the register, and no further as far as we know
    failed: bool = False  # this call asked the token in vain

    @property
    def link_id(self) -> str:
        return self.request.transfer_id

    @property
    def digest(self) -> Digest:
        return self.intended.digest

    def entry(self, kind: Kind, entry_id: str, body: bytes) -> Entry:
        return Entry(self.link_id, entry_id, kind, *self.span.entry_ids, body)

    def use_signature(self, body: bytes) -> None:
        """Take a stored success as this item's."""
        stored = json.loads(body)
        self.signature_body = body
        self.raw_tx, self.tx_hash = from_hex(stored["raw_tx"]), from_hex(stored["tx_hash"])


def take_rows(item: Item, rows: Sequence[Registered]) -> Registered | None:
    """Take the row of the item's transaction among its link's; else the last row, for the item may be its fee bump.

    An item that is neither drops out.
    """
    first, last = rows[0], rows[-1]
    row = next((one for one in rows if one.unsigned_tx == item.request.unsigned_tx and one.key == item.key), None)
    try:
        if first.voided:
            raise WalletError(Reason.LINK_VOIDED, Reason.LINK_VOIDED.meaning)
        _check_supersedes(item, first)
        if (row is None or row.signature_body is None) and first.superseded_by is not None:
            raise WalletError(Reason.SUPERSEDED, Reason.SUPERSEDED.meaning)
        if row is None and (last.signature_body is None or last.key != item.key):
            raise WalletError(
                Reason.ALREADY_EXISTS, "the link is registered for another transaction", field="unsigned_tx"
            )
    except WalletError as error:
        item.error = error
        return None
    if row is None:
        return last
    item.attempt = row.attempt
    item.intent_body, item.intent_index = row.intent_body or b"", row.intent_index
    item.unsigned_before = row.signature_body is None
    if row.signature_body is not None:
        item.use_signature(row.signature_body)
    return None


def _check_supersedes(item: Item, first: Registered) -> None:
    asked = item.request.supersedes
    if asked is not None and asked != first.supersedes:
        raise WalletError(Reason.ALREADY_EXISTS, "the link is registered for something else", field="supersedes")
    if first.supersedes is not None:
        # Whatever the row says, it is not a way to a second transaction.
        check_superseding(item.intended.tx, item.request.from_address)
        item.intended = item.intended._replace(supersedes=first.supersedes)


def is_allowed_intent(item: Item, stored_body: bytes) -> bool:
    """Whether the log holds an allowed intent for the very same bytes."""
    stored = _object(stored_body)
    try:
        return stored["policy"]["decision"] == "allow" and from_hex(stored["unsigned_tx"]) == item.request.unsigned_tx
    except (KeyError, TypeError, WalletError):
        return False


def is_same_success(item: Item, stored_body: bytes) -> bool:
    """Whether the log holds a success for the same digest, by the same sender."""
    stored = _object(stored_body)
    if stored.get("status") != "success":
        return False
    try:
        tx, signature = decode_raw(from_hex(stored["raw_tx"]))
        sender = address_of_public_key(recover_public_key(item.digest, signature))
    except (KeyError, TypeError, WalletError):
        return False
    return tx == item.intended.tx and sender == item.request.from_address


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
