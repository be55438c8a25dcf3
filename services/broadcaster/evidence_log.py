"""Appending to the evidence log: in order, in bounded calls, again until the log has answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from protos.wallet.v1 import evidence_pb2 as pb
from services.core.errors import Code, Reason, WalletError
from services.runtime.rpc_errors import from_item_error

if TYPE_CHECKING:
    from protos.wallet.v1.evidence_pb2_grpc import EvidenceAsyncStub

_MAX_ENTRIES = 2_000
_MAX_BYTES = 8 * 1024 * 1024
_TIMEOUT_S = 15.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_NOT_NOW = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.CANCELLED})

_log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """One entry to append; `body` is canonical JSON that is committed in a row of ours."""

    link_id: str
    entry_id: str
    kind: str
    trace_id: str
    span_id: str
    body: bytes


class EvidenceLog:
    def __init__(self, stub: EvidenceAsyncStub) -> None:
        self._stub = stub

    async def append(self, entries: Sequence[Entry]) -> list[int | WalletError]:
        """Index of each entry in the log, or why the log refuses it for good. Waits while the log is unavailable.

        An id that the log holds already is no failure: with our body it is a repetition, with another the first stays.
        """
        outcomes: list[int | WalletError] = []
        for part in _parts(entries):
            outcomes += await self._append_part(part)
        return outcomes

    async def _append_part(self, entries: list[Entry]) -> list[int | WalletError]:
        request = pb.AppendEntriesRequest(
            entries=[
                pb.AppendEntryRequest(
                    link_id=entry.link_id,
                    entry_id=entry.entry_id,
                    kind=entry.kind,
                    trace_id=entry.trace_id,
                    span_id=entry.span_id,
                    body=entry.body,
                )
                for entry in entries
            ]
        )
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                reply = await self._stub.AppendEntries(request, timeout=_TIMEOUT_S)
                break
            except WalletError as error:
                if error.reason.code not in _NOT_NOW:
                    raise
                _log.warning("the evidence log does not answer; waiting", extra={"reason": error.reason.name})
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        return [_outcome(entry, result) for entry, result in zip(entries, reply.results, strict=True)]


def _outcome(entry: Entry, result: pb.AppendResult) -> int | WalletError:
    if result.WhichOneof("result") == "appended":
        return result.appended.index
    error = from_item_error(result.failure.error)
    extra = {"link_id": entry.link_id, "entry_id": entry.entry_id, "reason": error.reason.name, "detail": str(error)}
    if error.reason is Reason.ENTRY_CONFLICT:
        _log.error("the log holds another body under this entry id; the first stays", extra=extra)
        return int(error.details.get("index", 0))
    _log.error("the log refuses an entry", extra=extra)
    return error


def _parts(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    part: list[Entry] = []
    size = 0
    for entry in entries:
        if part and (len(part) == _MAX_ENTRIES or size + len(entry.body) > _MAX_BYTES):
            yield part
            part, size = [], 0
        part.append(entry)
        size += len(entry.body)
    if part:
        yield part
