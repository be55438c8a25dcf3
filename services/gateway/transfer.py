"""A transfer as the gateway keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from protos.wallet.v1.common_pb2 import FeeOptions, KeyVersion, Terms
from services.core.addresses import Address, checksum_address
from services.core.errors import Reason, WalletError


class State(StrEnum):
    ACCEPTED = "ACCEPTED"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    BUILT = "BUILT"
    SIGNED = "SIGNED"
    SUBMITTED = "SUBMITTED"
    INCLUDED = "INCLUDED"
    SAFE = "SAFE"
    FINALIZED = "FINALIZED"
    FAILED = "FAILED"


# Nothing follows these.
FINAL_STATES = frozenset({State.FINALIZED, State.FAILED})
# Nothing is signed in these, as far as the row knows.
UNSIGNED_STATES = frozenset({State.ACCEPTED, State.AWAITING_APPROVAL, State.BUILT})

# (CAIP-2 chain id, 20-byte sender): transfers of one account share a nonce sequence, so they are worked on together.
AccountKey = tuple[str, bytes]


@dataclass(slots=True)
class Transfer:
    """A row of `transfers`."""

    transfer_id: str
    state: State
    account_id: str
    chain_id: str
    from_address: bytes
    # Empty for a contract creation.
    to_address: bytes
    value_wei: str
    data: bytes
    # Serialised FeeOptions.
    fees: bytes
    key_id: str
    key_version: int
    traceparent: str
    # Encrypted requester; None once the intent is entered.
    personal: bytes | None
    created_at: datetime
    updated_at: datetime
    unsigned_tx: bytes | None = None
    nonce: int | None = None
    raw_tx: bytes | None = None
    tx_hash: bytes | None = None
    block_number: int | None = None
    receipt_status: int | None = None
    # {"reason", "message", "details"}: why it failed, or, before state FAILED, why it is about to.
    failure: dict[str, Any] | None = None
    attempts: int = 0
    fencing: int = 0
    # Newest version that broadcaster holds: 0 is the first transaction, the rest are its fee bumps.
    replacement: int = 0
    replacement_wanted: int | None = None
    # Why it is not mined, as far as it is known: a name of StallCause, or FEE_CAP_REACHED.
    stall: str | None = None
    # None for a transfer of its own; the link whose nonce it spends, empty for a nonce that was given back.
    supersedes: str | None = None
    superseded_by: str | None = None
    # Another transaction with its nonce is finalized.
    nonce_spent: bool = False
    # Encrypted under the superseding link's id: who asked to cancel it.
    cancelled_by: bytes | None = None
    # {"count", "valid_s", "approvers", "keys"}, and until when approvals are taken.
    approval: dict[str, Any] | None = None
    approval_expires_at: datetime | None = None

    @property
    def account_key(self) -> AccountKey:
        return self.chain_id, self.from_address

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]

    @property
    def key(self) -> KeyVersion:
        return KeyVersion(key_id=self.key_id, version=self.key_version)

    @property
    def terms(self) -> Terms:
        return Terms(
            chain_id=self.chain_id,
            from_address=self.from_address,
            to_address=self.to_address,
            value_wei=self.value_wei,
            data=self.data,
        )

    @property
    def fee_options(self) -> FeeOptions:
        return FeeOptions.FromString(self.fees)

    @property
    def to_text(self) -> str | None:
        return checksum_address(Address(self.to_address)) if self.to_address else None


def failure_document(error: WalletError) -> dict[str, Any]:
    details = {name: str(value) for name, value in error.details.items()}
    return {"reason": error.reason.name, "message": error.message, "details": details}


def failure_error(document: dict[str, Any]) -> WalletError:
    return WalletError(Reason[document["reason"]], document["message"], **document["details"])
