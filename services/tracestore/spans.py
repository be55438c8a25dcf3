"""Spans of an OTLP request into rows, one a span. Pure: no I/O."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from protos.wallet.v1.otlp_parts_pb2 import OtlpSpan, OtlpSpanDetails, OtlpStatus
from services.tracestore.attributes import (
    ERROR_KEY,
    MAX_TOKENS,
    STATUS_ERROR,
    Tokens,
    attribute_token,
    duration_token,
    name_token,
)
from services.tracestore.otlp import MAX_RECORD_BYTES, TOO_LARGE, Head, Rejected, column_text, split_export

MAX_BIGINT = 2**63 - 1
_NO_TRACE_ID, _NO_SPAN_ID = bytes(16), bytes(8)
# Source: opentelemetry/proto/trace/v1/trace.proto, Span.SpanKind and Status.StatusCode.
_KINDS, _STATUSES = range(6), range(3)
_FIELDS = frozenset(OtlpSpan.DESCRIPTOR.fields_by_number)
_MALFORMED = "span: the rule is that it is an OTLP Span"
_TRACE_ID_RULE = "trace_id: the rule is that it is 16 bytes, not all zero"
_SPAN_ID_RULE = "span_id: the rule is that it is 8 bytes, not all zero"
_DURATION_TOKENS = [str(duration_token(bits)) for bits in range(64)]
_ERROR_TOKEN = str(attribute_token(ERROR_KEY, b"true"))
_MAX_KEPT, _MAX_KEPT_BYTES = 4_096, 256
Kept = TypeVar("Kept")


class SpanRow(NamedTuple):
    """One stored span, as the type `tracestore.incoming_span` has it. Rows sort as the index of their identity does:
    (trace_id, start_ns, span_id, sha256)."""

    trace_id: bytes
    start_ns: int
    span_id: bytes
    sha256: bytes
    # Empty for a root.
    parent_span_id: bytes
    duration_ns: int
    service: str
    name: str
    kind: int
    status: int
    # PostgreSQL's literal of an array of integers.
    tokens: str
    scope_sha256: bytes
    # As it came.
    span: bytes


@dataclass
class SpanBatch:
    """What one Export call brought: rows, the heads they name, and the spans that were refused."""

    rows: list[SpanRow] = field(default_factory=list)
    # By SHA-256.
    heads: dict[bytes, bytes] = field(default_factory=dict)
    size_bytes: int = 0
    rejected: int = 0
    rejection: str = ""

    def reject(self, rule: str) -> None:
        self.rejected += 1
        self.rejection = self.rejection or rule


class SpanSplitter:
    """Keeps what it made of names, statuses and attributes that it has seen."""

    def __init__(self) -> None:
        self._tokens = Tokens()
        self._names: dict[bytes, tuple[str, str]] = {}
        self._statuses: dict[bytes, int] = {b"": 0}

    def split(self, request: bytes) -> SpanBatch:
        """Every span of an ExportTraceServiceRequest as a row; malformed ones are counted, with the first one's rule.

        Raises:
            WalletError: INVALID_REQUEST.
        """
        batch = SpanBatch()
        for head, spans in split_export(request, "ExportTraceServiceRequest"):
            batch.heads[head.sha256] = head.content
            room = MAX_RECORD_BYTES - len(head.content)
            for span in spans:
                try:
                    if len(span) > room:
                        raise Rejected(TOO_LARGE)
                    batch.rows.append(self._row(head, span))
                    batch.size_bytes += len(span)
                except DecodeError:
                    batch.reject(_MALFORMED)
                except Rejected as rejected:
                    batch.reject(str(rejected))
        return batch

    def _row(self, head: Head, span_bytes: bytes) -> SpanRow:
        """Raises DecodeError, Rejected. This is most of what a span costs: a field is read once."""
        span = OtlpSpan.FromString(span_bytes)
        trace_id, span_id, parent_span_id = span.trace_id, span.span_id, span.parent_span_id
        # W3C Trace Context §3.2.2: ids of 16 and 8 bytes, not all zero.
        if len(trace_id) != 16 or trace_id == _NO_TRACE_ID:
            raise Rejected(_TRACE_ID_RULE)
        if len(span_id) != 8 or span_id == _NO_SPAN_ID:
            raise Rejected(_SPAN_ID_RULE)
        if parent_span_id and len(parent_span_id) != 8:
            raise Rejected("parent_span_id: the rule is that it is 8 bytes, or none")
        start_ns, end_ns, kind = span.start_time_unix_nano, span.end_time_unix_nano, span.kind
        if start_ns > MAX_BIGINT:
            raise Rejected("start_time_unix_nano: the rule is that it is below 2**63")
        # An end before the start, or none, is no duration.
        duration_ns = end_ns - start_ns if start_ns < end_ns <= MAX_BIGINT else 0
        name, name_token_text = self._names.get(span.name) or self._read_name(span.name)
        status = self._statuses.get(span.status)
        if status is None:
            status = self._read_status(span.status)
        # A known field of another type is unknown to this parser, and an error to others. Later fields are welcome.
        unknown = UnknownFieldSet(span)
        if len(unknown) and any(unknown[at].field_number in _FIELDS for at in range(len(unknown))):
            raise Rejected(_MALFORMED)
        attributes = list(span.attributes)
        if span.events or span.links or len(attributes) >= MAX_TOKENS:
            tokens = self._tokens.of_details(_details(span_bytes))
        else:
            tokens = self._tokens.of_attributes(attributes)
        tokens += name_token_text, _DURATION_TOKENS[duration_ns.bit_length()]
        if status == STATUS_ERROR:
            tokens.append(_ERROR_TOKEN)
        return SpanRow(
            trace_id,
            start_ns,
            span_id,
            hashlib.sha256(span_bytes).digest(),
            parent_span_id,
            duration_ns,
            head.service,
            name,
            kind if kind in _KINDS else 0,
            status,
            f"{{{','.join(tokens)}}}",
            head.sha256,
            span_bytes,
        )

    def _read_name(self, name: bytes) -> tuple[str, str]:
        read = column_text(name), str(name_token(name))
        return _keep(self._names, name, read)

    def _read_status(self, status: bytes) -> int:
        code = OtlpStatus.FromString(status).code
        return _keep(self._statuses, status, code if code in _STATUSES else 0)


def _keep(kept: dict[bytes, Kept], key: bytes, value: Kept) -> Kept:
    if len(key) <= _MAX_KEPT_BYTES:
        if len(kept) >= _MAX_KEPT:
            kept.clear()
        kept[key] = value
    return value


def _details(span_bytes: bytes) -> OtlpSpanDetails:
    """The span to its depths: what is stored, every reader can read. Raises DecodeError, Rejected."""
    details = OtlpSpanDetails.FromString(span_bytes)
    for link in details.links:
        if len(link.trace_id) not in (0, 16):
            raise Rejected(_TRACE_ID_RULE)
        if len(link.span_id) not in (0, 8):
            raise Rejected(_SPAN_ID_RULE)
    return details
