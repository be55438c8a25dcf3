"""Signer's spans, and what it puts on them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from opentelemetry import trace
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from services.core.account_ids import AccountIds
from services.core.amounts import format_chain_id
from services.core.transactions import Eip1559Transaction, LegacyTransaction, UnsignedTransaction
from services.runtime import attributes as names
from services.runtime.transfer_span import TransferSpan, TransferSpans, transfer_parent
from services.signer.bodies import ALGORITHM, failure_status
from services.signer.item import Item
from services.signer.workers import TokenFailure, TokenOutcome

SCOPE = InstrumentationScope("goldenlink.signer", "")
SIGNATURE_SPAN = "signer.signature"
TOKEN_SPAN = "token.sign"  # noqa: S105 - a span's name
# Sampled whatever the caller's flag says: gateway's own floor is not relied on.
SIGNATURE_ROOTS: Final = frozenset(
    {"wallet.v1.Signer/SignTransaction", "wallet.v1.Signer/SignTransactions", SIGNATURE_SPAN, TOKEN_SPAN}
)


class SignatureSpans:
    """Starts the spans of one call, made within it."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._spans = TransferSpans(tracer)
        self._here = trace.get_current_span().get_span_context()
        self._link_here = (Link(self._here),) if self._here.is_valid else ()

    def start(self, transfer: SpanContext) -> TransferSpan:
        """A span in the transfer's trace: below the current span when that is in it, else linked to it."""
        if self._here.is_valid and self._here.trace_id == transfer.trace_id:
            return self._spans.start(SIGNATURE_SPAN, self._here, {})
        parent = transfer_parent(transfer.trace_id, transfer.span_id)
        return self._spans.start(SIGNATURE_SPAN, parent, {}, self._link_here)

    def start_token(self, signature: TransferSpan | None, count: int) -> TransferSpan | Span:
        """A span of one token call: below the signature's span, or for a batch below the current span."""
        attributes = {names.WALLET_SIGNATURE_COUNT: count}
        if signature is not None:
            return signature.child(TOKEN_SPAN, SpanKind.INTERNAL, attributes)
        return self._tracer.start_span(TOKEN_SPAN, attributes=attributes)


def describe_signature(item: Item, place: int, account_ids: AccountIds) -> None:
    """Write on the span of an item that has ended; `place` is its own in the batch."""
    tx = item.intended.tx
    found: dict[str, AttributeValue] = {
        names.WALLET_LINK_ID: item.link_id,
        names.WALLET_SIGNATURE_ALGORITHM: ALGORITHM,
        names.WALLET_SIGNER_ROLE: "owner",
        names.WALLET_ACCOUNT_ID: account_ids.of(tx.chain_id, item.intended.sender),
        names.WALLET_CHAIN_ID: format_chain_id(tx.chain_id),
        names.WALLET_TX_SIGN_HASH: "0x" + sha256(item.intended.unsigned_tx).hexdigest(),
        names.WALLET_TX_TYPE: _type(tx),
    }
    if item.error is None:
        found[names.WALLET_SIGNATURE_STATUS] = "success"
        found[names.WALLET_TX_HASH] = "0x" + item.tx_hash.hex()
        found[names.WALLET_SIGNATURE_ORDER] = place
        found[names.WALLET_EVIDENCE_INDEX] = item.signature_index or 0
    else:
        found[names.WALLET_SIGNATURE_STATUS] = failure_status(item.error)
        found[names.WALLET_ERROR_ORIGIN] = str(item.error.details.get("origin", "service"))
        item.span.mark_failed(item.error.reason.name)
    if item.duration_ms is not None:
        found[names.WALLET_SIGNATURE_DURATION_MS] = round(item.duration_ms, 1)
    if item.leaf is not None:
        found[names.WALLET_ID] = item.leaf.wallet_id
        found[names.WALLET_ACCOUNT_PATH] = item.leaf.derivation_path
        found[names.WALLET_HD_INDEX] = item.leaf.hd_index
    if not item.decision.allowed:
        found[names.WALLET_POLICY_DECISION] = item.decision.word
    item.span.set_attributes(found)


def describe_token_failure(span: TransferSpan | Span, outcomes: Sequence[TokenOutcome]) -> None:
    failure = next((outcome for outcome in outcomes if isinstance(outcome, TokenFailure)), None)
    if failure is None:
        return
    span.set_attribute(names.WALLET_ERROR_ORIGIN, str(failure.error.details.get("origin", "token")))
    error_type = failure.error.reason.name
    if isinstance(span, TransferSpan):
        span.mark_failed(error_type)
    else:
        span.set_attribute(names.ERROR_TYPE, error_type)
        span.set_status(Status(StatusCode.ERROR, error_type))


def _type(tx: UnsignedTransaction) -> int:
    """EIP-2718."""
    if isinstance(tx, LegacyTransaction):
        return 0
    return 2 if isinstance(tx, Eip1559Transaction) else 1
