"""Stored records into messages that every gRPC client takes. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.tracestore.hot import StoredRecord
from services.tracestore.otlp import join_records, join_resources

# A record alone may be larger: up to `otlp.MAX_RECORD_BYTES`, which fits too.
_CHUNK_BYTES = 3 * 1024 * 1024


def by_size(records: Sequence[StoredRecord]) -> Iterator[list[StoredRecord]]:
    """In order, in groups that fit a message, each record with a head of its own; none is empty."""
    group: list[StoredRecord] = []
    size = 0
    for record in records:
        size_of_record = len(record.head) + len(record.content)
        if group and size + size_of_record > _CHUNK_BYTES:
            yield group
            group, size = [], 0
        group.append(record)
        size += size_of_record
    if group:
        yield group


def trace_chunks(spans: Sequence[StoredRecord]) -> Iterator[bytes]:
    """Serialised TracesData messages with these spans, those of one resource and scope together."""
    for group in by_size(spans):
        of_head: dict[bytes, list[bytes]] = {}
        for span in group:
            of_head.setdefault(span.head, []).append(span.content)
        yield join_resources(join_records(head, contents) for head, contents in of_head.items())
