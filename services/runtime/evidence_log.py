"""The evidence log as a service writes it: many entries a call, one outcome each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from protos.wallet.v1 import evidence_pb2, evidence_pb2_grpc
from services.core.entries import Kind
from services.core.errors import Code, Reason, WalletError
from services.runtime.rpc_errors import from_item_error

# What the log's sequencer alone serves: for writers, `PeerChannel("evidence", settings, APPENDING)`. Readers need no
# part: every replica serves them.
APPENDING = "wallet.v1.Evidence/append"
# Of one AppendEntries: evidence takes 5,000 entries and 16 MiB.
_MAX_BATCH_ENTRIES = 5_000
_MAX_BATCH_BYTES = 12 << 20


class Entry(NamedTuple):
    link_id: str
    entry_id: str
    kind: Kind
    trace_id: str
    span_id: str
    body: bytes


class Refused(NamedTuple):
    """The log did not take an entry; with ENTRY_CONFLICT, `stored_body` is what it holds under this entry id."""

    error: WalletError
    stored_body: bytes

    @property
    def is_conflict(self) -> bool:
        return self.error.reason is Reason.ENTRY_CONFLICT


class EvidenceLog:
    def __init__(self, stub: evidence_pb2_grpc.EvidenceAsyncStub, timeout_s: float = 10.0) -> None:
        self._stub = stub
        self._timeout_s = timeout_s

    async def append(self, entries: Sequence[Entry]) -> list[int | Refused]:
        """The index of each entry once it is durable, or why it was refused; one call unless it grows too large.

        Raises:
            WalletError: EVIDENCE_UNAVAILABLE; any of the entries may be in the log, and is to be appended again.
        """
        outcomes: list[int | Refused] = []
        for batch in _batches(entries):
            request = evidence_pb2.AppendEntriesRequest(
                entries=[
                    evidence_pb2.AppendEntryRequest(
                        link_id=link_id, entry_id=entry_id, kind=kind, trace_id=trace_id, span_id=span_id, body=body
                    )
                    for link_id, entry_id, kind, trace_id, span_id, body in batch
                ]
            )
            try:
                reply = await self._stub.AppendEntries(request, timeout=self._timeout_s)
            except WalletError as error:
                raise _by_meaning(error) from error
            if len(reply.results) != len(batch):
                raise WalletError(Reason.EVIDENCE_UNAVAILABLE, "the log answered for a different number of entries")
            outcomes.extend(_outcome(result) for result in reply.results)
        return outcomes

    async def missing(self, timeout_s: float) -> list[str]:
        """What keeps the log from taking entries now; nothing if it takes them."""
        try:
            status = await self._stub.GetEvidenceStatus(evidence_pb2.GetEvidenceStatusRequest(), timeout=timeout_s)
        except WalletError as error:
            return [f"evidence: {error.reason.meaning}"]
        return (
            [] if status.appending else [f"evidence: {line}" for line in status.missing] or ["evidence: not appending"]
        )


def _outcome(result: evidence_pb2.AppendResult) -> int | Refused:
    if result.HasField("appended"):
        return result.appended.index
    return Refused(_by_meaning(from_item_error(result.failure.error)), result.failure.stored_body)


def _by_meaning(error: WalletError) -> WalletError:
    """`error` if it says that the entry is wrong; else the log is not to be had, whatever the cause."""
    if error.reason.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.RESOURCE_EXHAUSTED):
        return WalletError(Reason.EVIDENCE_UNAVAILABLE, Reason.EVIDENCE_UNAVAILABLE.meaning, cause=error.reason.name)
    return error


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        if batch and (len(batch) == _MAX_BATCH_ENTRIES or size + len(entry.body) > _MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += len(entry.body)
    if batch:
        yield batch
