"""Records into messages that a gRPC client takes as it is."""

from __future__ import annotations

from services.tracestore.chunks import by_size
from services.tracestore.hot import StoredRecord
from services.tracestore.otlp import MAX_READABLE_BYTES


def test_groups_keep_the_order_are_never_empty_and_fit() -> None:
    sizes = [1, 4_000_000, 10, 1_500_000, 1_500_000, 1_500_000, 3_145_728, 5]
    records = [StoredRecord(b"h", bytes([number]) * size) for number, size in enumerate(sizes)]
    groups = list(by_size(records))
    assert [record for group in groups for record in group] == records
    assert all(groups)
    assert max(sum(len(record.content) for record in group) for group in groups) < MAX_READABLE_BYTES
    assert len(groups) == 6
    assert list(by_size([])) == []
