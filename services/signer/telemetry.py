"""What signer puts on its spans, and how it hides the account."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode

from services.runtime import attributes as names
from services.runtime.telemetry import stored_context
from services.signer.bodies import failure_status
from services.signer.item import Item
from services.signer.workers import TokenFailure, TokenOutcome

SIGNATURE_SPAN = "signer.signature"
TOKEN_SPAN = "token.sign"  # noqa: S105 - a span's name

_tracer = trace.get_tracer("goldenlink.signer")


def start_signature_span(traceparent: str, attributes: dict[str, str | int]) -> Span:
    """A span in the transfer's trace: below the current span when that is in it, else linked to it."""
    current = trace.get_current_span()
    here = current.get_span_context()
    if here.is_valid and f"{here.trace_id:032x}" == traceparent[3:35]:
        return _tracer.start_span(SIGNATURE_SPAN, attributes=attributes)
    links = [Link(here)] if here.is_valid else None
    return _tracer.start_span(SIGNATURE_SPAN, stored_context(traceparent), attributes=attributes, links=links)


def start_token_span(parent: Span | None, attributes: dict[str, str | int]) -> Span:
    """A span of one token call: below the signature's span, or for a batch below the current span."""
    context: Context | None = trace.set_span_in_context(parent) if parent is not None else None
    return _tracer.start_span(TOKEN_SPAN, context, attributes=attributes)


def end_signature_span(item: Item, place: int) -> None:
    span = item.span
    if span.is_recording():
        if item.error is None:
            found: dict[str, str | int | float] = {
                names.WALLET_SIGNATURE_STATUS: "success",
                names.WALLET_TX_HASH: "0x" + item.tx_hash.hex(),
                names.WALLET_SIGNATURE_ORDER: place,
                names.WALLET_EVIDENCE_INDEX: item.signature_index or 0,
            }
        else:
            found = {names.WALLET_SIGNATURE_STATUS: failure_status(item.error)}
            found[names.ERROR_TYPE] = item.error.reason.name
            found[names.WALLET_ERROR_ORIGIN] = str(item.error.details.get("origin", "service"))
            span.set_status(Status(StatusCode.ERROR, item.error.reason.name))
        if item.duration_ms is not None:
            found[names.WALLET_SIGNATURE_DURATION_MS] = round(item.duration_ms, 1)
        if item.leaf is not None:
            found[names.WALLET_ID] = item.leaf.wallet_id
            found[names.WALLET_ACCOUNT_PATH] = item.leaf.derivation_path
            found[names.WALLET_HD_INDEX] = item.leaf.hd_index
        if not item.decision.allowed:
            found[names.WALLET_POLICY_DECISION] = item.decision.word
        span.set_attributes(found)
    span.end()


def describe_token_failure(span: Span, outcomes: Sequence[TokenOutcome]) -> None:
    failure = next((outcome for outcome in outcomes if isinstance(outcome, TokenFailure)), None)
    if failure is not None:
        span.set_attribute(names.ERROR_TYPE, failure.error.reason.name)
        span.set_attribute(names.WALLET_ERROR_ORIGIN, str(failure.error.details.get("origin", "token")))
        span.set_status(Status(StatusCode.ERROR, failure.error.reason.name))
