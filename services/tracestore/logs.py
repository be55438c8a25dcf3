"""Log records of an OTLP request into rows, one a record. Pure: no I/O."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import DecodeError

from protos.wallet.v1.otlp_parts_pb2 import OtlpLogRecord
from services.tracestore.otlp import MAX_RECORD_BYTES, TOO_LARGE, Head, Rejected, split_export
from services.tracestore.spans import MAX_BIGINT

# Source: opentelemetry/proto/logs/v1/logs.proto, SeverityNumber.
_SEVERITIES = range(25)


class LogRow(NamedTuple):
    """One stored record, as the type `tracestore.incoming_log` has it. Rows sort as the index of their
    identity does: by their first four."""

    # Empty where the record names no trace.
    trace_id: bytes
    time_ns: int
    sha256: bytes
    scope_sha256: bytes
    span_id: bytes
    severity: int
    service: str
    # As it came.
    record: bytes


@dataclass
class LogBatch:
    """What one Export call brought: rows, the heads they name, and the records that were refused."""

    rows: list[LogRow] = field(default_factory=list)
    # By SHA-256.
    heads: dict[bytes, bytes] = field(default_factory=dict)
    size_bytes: int = 0
    rejected: int = 0
    rejection: str = ""

    def reject(self, rule: str) -> None:
        self.rejected += 1
        self.rejection = self.rejection or rule


def split_logs(request: bytes) -> LogBatch:
    """Every record of an ExportLogsServiceRequest as a row; malformed ones are counted, with the first one's rule.

    Raises:
        WalletError: INVALID_REQUEST.
    """
    batch = LogBatch()
    for head, records in split_export(request, "ExportLogsServiceRequest"):
        batch.heads[head.sha256] = head.content
        for record in records:
            try:
                batch.rows.append(_row(head, record))
                batch.size_bytes += len(record)
            except Rejected as rejected:
                batch.reject(str(rejected))
    return batch


def _row(head: Head, record_bytes: bytes) -> LogRow:
    if len(head.content) + len(record_bytes) > MAX_RECORD_BYTES:
        raise Rejected(TOO_LARGE)
    try:
        record = OtlpLogRecord.FromString(record_bytes)
    except DecodeError:
        raise Rejected("log record: the rule is that it is an OTLP LogRecord") from None
    if len(record.trace_id) not in (0, 16):
        raise Rejected("trace_id: the rule is that it is 16 bytes, or none")
    if len(record.span_id) not in (0, 8):
        raise Rejected("span_id: the rule is that it is 8 bytes, or none")
    time_ns = record.time_unix_nano or record.observed_time_unix_nano
    if time_ns > MAX_BIGINT:
        raise Rejected("time_unix_nano: the rule is that it is below 2**63")
    return LogRow(
        record.trace_id,
        time_ns,
        hashlib.sha256(record_bytes).digest(),
        head.sha256,
        record.span_id,
        record.severity_number if record.severity_number in _SEVERITIES else 0,
        head.service,
        record_bytes,
    )
