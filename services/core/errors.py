"""One error type for the whole suite: a `Reason`, a message, and details that name the field and the rule."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import NoReturn


class Code(IntEnum):
    """gRPC status codes by number, so that `core` needs no gRPC. Source: google.rpc.Code."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Reason(Enum):
    """Why a call was refused. The code decides about retries: UNAVAILABLE retry the call, ABORTED restart the step,
    FAILED_PRECONDITION and the rest do not."""

    # Requests
    INVALID_REQUEST = (Code.INVALID_ARGUMENT, "A field breaks its rule.")
    INVALID_ADDRESS = (Code.INVALID_ARGUMENT, "An address is not 20 bytes of hex, or its EIP-55 checksum is wrong.")
    INVALID_AMOUNT = (Code.INVALID_ARGUMENT, "An amount is not a whole number of wei in 0 … 2**256-1.")
    INVALID_CALLDATA = (Code.INVALID_ARGUMENT, "Call data does not fit its ABI signature, or is larger than 128 KiB.")
    PAYLOAD_TOO_LARGE = (Code.INVALID_ARGUMENT, "A body is larger than its limit.")
    UNKNOWN_CHAIN = (Code.INVALID_ARGUMENT, "The chain id is not configured here.")
    NOT_FOUND = (Code.NOT_FOUND, "The named wallet, account, transfer, link or trace does not exist.")
    ALREADY_EXISTS = (Code.ALREADY_EXISTS, "The name is taken by something else.")
    IDEMPOTENCY_KEY_MISSING = (Code.INVALID_ARGUMENT, "The Idempotency-Key header is required.")
    IDEMPOTENCY_KEY_REUSED = (Code.ALREADY_EXISTS, "The Idempotency-Key was used before with another body.")
    # Who asks
    UNAUTHENTICATED = (Code.UNAUTHENTICATED, "No valid credential was presented.")
    TOKEN_EXPIRED = (Code.UNAUTHENTICATED, "The bearer token has expired.")
    ROLE_REQUIRED = (Code.PERMISSION_DENIED, "The credential's role may not do this.")
    CALLER_NOT_ALLOWED = (Code.PERMISSION_DENIED, "The calling service is not on this service's allow-list.")
    # Policy and building
    POLICY_DENIED = (Code.PERMISSION_DENIED, "The signing policy refuses this transaction.")
    INSUFFICIENT_FUNDS = (Code.FAILED_PRECONDITION, "The account cannot pay value plus the largest fee.")
    FEE_CAP_BELOW_BASE_FEE = (Code.FAILED_PRECONDITION, "max_fee_per_gas_wei is below the block's base fee.")
    GAS_LIMIT_ABOVE_BLOCK = (Code.FAILED_PRECONDITION, "gas_limit is above the block's gas limit.")
    EXECUTION_REVERTED = (Code.FAILED_PRECONDITION, "The node's gas estimate says that the call reverts.")
    FEE_CAP_REACHED = (Code.FAILED_PRECONDITION, "A replacement would cost more gas fee than the cap allows.")
    NONCE_CONFLICT = (Code.ABORTED, "Another writer took the nonce; the step is to be restarted.")
    LEASE_LOST = (Code.ABORTED, "The lease ended, or a newer holder has a higher fencing token.")
    TERMS_MISMATCH = (Code.INTERNAL, "The unsigned transaction is not what the transfer's terms ask for.")
    # Signing
    LINK_VOIDED = (Code.FAILED_PRECONDITION, "The link was voided; it is never signed.")
    ALREADY_SIGNED = (Code.FAILED_PRECONDITION, "A signature is stored; the link cannot be voided.")
    NONCE_REGISTERED = (Code.FAILED_PRECONDITION, "The nonce is registered for another link.")
    SUPERSEDED = (Code.FAILED_PRECONDITION, "A superseding link has the nonce; this link is never signed again.")
    NONCE_SPENT = (Code.FAILED_PRECONDITION, "Another transaction with this nonce is finalized.")
    APPROVAL_REQUIRED = (Code.FAILED_PRECONDITION, "The log does not show the approvals that the policy asks for.")
    KEY_NOT_FOUND = (Code.FAILED_PRECONDITION, "No such key, or its version is retired.")
    TRANSPORT_KEY_NOT_APPROVED = (Code.PERMISSION_DENIED, "No operator approved the signer's transport key.")
    TOKEN_UNAVAILABLE = (Code.UNAVAILABLE, "The PKCS#11 token is missing, locked or lost its session.")
    TOKEN_PIN_INCORRECT = (Code.UNAVAILABLE, "The PKCS#11 token refused the PIN: an operator must mend it.")
    TOKEN_TIMEOUT = (Code.UNAVAILABLE, "A token call exceeded its time limit.")
    SIGNATURE_INVALID = (Code.INTERNAL, "The token's signature does not verify under the account's key.")
    # Evidence
    EVIDENCE_UNAVAILABLE = (Code.UNAVAILABLE, "The evidence log cannot be written; nothing irreversible is done.")
    LINK_CLOSED = (Code.FAILED_PRECONDITION, "The link is closed (finalized or denied); nothing may follow.")
    OUT_OF_ORDER = (Code.FAILED_PRECONDITION, "The link's grammar does not allow this entry now.")
    CLOCK_SKEW = (Code.FAILED_PRECONDITION, "A time in the body lies too far from the log's clock.")
    ENTRY_CONFLICT = (Code.ALREADY_EXISTS, "The entry id is stored with another body; the stored entry is returned.")
    # Approvals and cancellation
    SELF_APPROVAL = (Code.PERMISSION_DENIED, "Who asked may not approve.")
    APPROVAL_EXPIRED = (Code.FAILED_PRECONDITION, "The time for approvals is over.")
    APPROVAL_MISMATCH = (Code.FAILED_PRECONDITION, "The approval is for other terms than the transfer's.")
    APPROVAL_REJECTED = (Code.FAILED_PRECONDITION, "An approver has rejected it.")
    TRANSFER_CANCELLED = (Code.FAILED_PRECONDITION, "The transfer was cancelled before it was signed.")
    TRANSFER_CLOSED = (Code.FAILED_PRECONDITION, "The transfer's state does not allow this any more.")
    # Requests that are signed
    CONTENT_DIGEST_MISMATCH = (Code.INVALID_ARGUMENT, "Content-Digest is not that of the body.")
    REQUEST_SIGNATURE_INVALID = (Code.UNAUTHENTICATED, "The HTTP message signature does not verify.")
    # Chain
    CHAIN_BROKEN = (Code.FAILED_PRECONDITION, "The nodes contradict a final block; nothing is signed on this chain.")
    NODE_UNAVAILABLE = (Code.UNAVAILABLE, "Too few nodes answered.")
    NODES_DISAGREE = (Code.UNAVAILABLE, "Fewer than k nodes give the same answer.")
    # Plumbing
    DATABASE_UNAVAILABLE = (Code.UNAVAILABLE, "The database cannot be reached.")
    SERVICE_UNAVAILABLE = (Code.UNAVAILABLE, "A service that this call needs cannot be reached.")
    DEADLINE_EXCEEDED = (Code.DEADLINE_EXCEEDED, "The call did not finish in time; its outcome is unknown.")
    CANCELLED = (Code.CANCELLED, "The caller gave up.")
    RATE_LIMITED = (Code.RESOURCE_EXHAUSTED, "Too many requests are waiting.")
    INTERNAL = (Code.INTERNAL, "An unexpected error; its text is in the service's log, under the trace id.")

    def __init__(self, code: Code, meaning: str) -> None:
        self.code = code
        self.meaning = meaning


# ErrorInfo metadata may carry these and nothing that is personal or secret.
DetailValue = str | int


class WalletError(Exception):
    """The one exception that crosses services.

    `details` name the field and the rule (`field=`, `rule=`, `index=` in a batch); they reach the caller.
    """

    def __init__(self, reason: Reason, message: str, **details: DetailValue) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.details = details

    def __str__(self) -> str:
        facts = " ".join(f"{name}={value}" for name, value in sorted(self.details.items()))
        return f"{self.reason.name}: {self.message}" + (f" ({facts})" if facts else "")


def refuse(field: str, rule: str, reason: Reason = Reason.INVALID_REQUEST) -> NoReturn:
    """Raise the error of a field that breaks its rule; `rule` completes the sentence "the field …"."""
    raise WalletError(reason, f"{field}: the rule is that it {rule}", field=field, rule=rule)
