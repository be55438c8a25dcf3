"""Spans of signature operations on their way: ended, then in the spool, then at a collector, and only then forgotten.

An ended span waits in memory until the group that it belongs to is written, 200 ms at most and however long that write
takes: what a killed process loses. Nothing here ever waits in the thread that ends spans.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from services.runtime import span_counts
from services.runtime.span_counts import SpanCounts
from services.runtime.span_frames import MAX_PAYLOAD_BYTES
from services.runtime.span_requests import halve, requests_of
from services.runtime.span_sender import SEND_TIMEOUT_S, Answer, Verdict, pauses
from services.runtime.span_spool import Chunk, MemorySpool, SpanSpool, spools_of

_log = logging.getLogger(__name__)

GROUP_S = 0.2  # from the first span of a group to its write
_GROUP_SPANS = 1_024
_MAX_QUEUED = 32_768
_MEMORY_BYTES = 32 * 1024 * 1024
# So much is sent without waiting for the schedule.
_SEND_BYTES = MAX_PAYLOAD_BYTES // 2
_ADOPT_EVERY_S = 10.0
_REOPEN_EVERY_S = 5.0
# At the end of the process, for what the spool keeps and for what nothing keeps.
_STOP_S, _STOP_IN_MEMORY_S = 2.0, 5.0
_TELL_AFTER_S = 5.0


class SpoolPlace(NamedTuple):
    directory: Path | None  # None: in memory only
    service: str
    max_bytes: int
    sync_s: float  # from a write to its fsync


class SpoolingProcessor(SpanProcessor):
    """`send` makes one attempt. Two threads: one writes, and is never kept waiting by a collector; one sends."""

    def __init__(
        self, send: Callable[[bytes], Answer], place: SpoolPlace, counts: SpanCounts, schedule_s: float = 5.0
    ) -> None:
        self._send = send
        self._place = place
        self._counts = counts
        self._schedule_s = schedule_s
        self._queue: deque[ReadableSpan] = deque()
        self._max_queued = _MAX_QUEUED
        self._is_awake = False
        self._stir = threading.Event()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._stop_at = float("inf")
        self._memory = MemorySpool(_MEMORY_BYTES)
        self._adopted: list[SpanSpool] = []
        self._adopt_at = self._reopen_at = 0.0
        # When what was written last is to be on the disk; None when it is.
        self._sync_at: float | None = None
        self._failure = ""
        self._is_full = False
        self._own = self._open()
        self._writer = threading.Thread(target=self._write, name="span-spool-writer", daemon=True)
        self._sender = threading.Thread(target=self._deliver, name="span-spool-sender", daemon=True)
        self._writer.start()
        self._sender.start()

    def on_end(self, span: ReadableSpan) -> None:
        queue = self._queue
        if len(queue) >= self._max_queued:
            self._counts.drop(span_counts.STOPPED if self._stopping.is_set() else span_counts.QUEUE_FULL)
            return
        queue.append(span)
        if not self._is_awake:
            self._is_awake = True
            self._stir.set()

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def backlog_bytes(self) -> int:
        own = self._own.size_bytes if self._own is not None else 0
        return own + self._memory.size_bytes + sum(one.size_bytes for one in list(self._adopted))

    @property
    def is_durable(self) -> bool:
        """Whether what ends now outlives this process."""
        return self._own is not None and not self._failure

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """True once all that has ended before is acknowledged."""
        end = monotonic() + timeout_millis / 1000
        while self._queue or self._is_awake or self.backlog_bytes:
            self._wake.set()
            if monotonic() > end:
                return False
            self._stopping.wait(0.005)
        return True

    def shutdown(self) -> None:
        """Write what is queued and send it; what no collector takes within 2 s stays in the spool. Later spans are
        dropped."""
        is_kept = self.is_durable and not self._memory.size_bytes
        self._stop_at = monotonic() + (_STOP_S if is_kept else _STOP_IN_MEMORY_S)
        self._stopping.set()
        self._max_queued = 0
        self._stir.set()
        self._wake.set()
        self._sender.join(_STOP_IN_MEMORY_S + 2 * SEND_TIMEOUT_S)
        if self._sender.is_alive():
            return
        for spool in (*self._adopted, *([self._own] if self._own is not None else [])):
            spool.close()
        if self._memory.size_bytes:
            _log.error("spans were in memory only, and are lost", extra={"bytes": self._memory.size_bytes})

    # The writer's thread.

    def _write(self) -> None:
        while not self._stopping.is_set():
            self._stir.wait(self._seconds_to_sync())
            self._stir.clear()
            while self._queue and not self._stopping.is_set():
                self._stopping.wait(GROUP_S)
                self._write_queued()
                self._sync_if_due()
            self._is_awake = False
            # One that ended before the line above has not stirred us.
            if self._queue:
                self._is_awake = True
                self._stir.set()
            self._sync_if_due()
        self._write_queued()
        self._sync_if_due(now=True)

    def _write_queued(self) -> None:
        waiting = len(self._queue)
        while waiting > 0:
            group = [self._queue.popleft() for _ in range(min(waiting, _GROUP_SPANS))]
            waiting -= len(group)
            for payload, spans in requests_of(group, self._counts.drop):
                self._keep(payload, spans)
        if self.backlog_bytes >= _SEND_BYTES:
            self._wake.set()

    def _seconds_to_sync(self) -> float | None:
        return None if self._sync_at is None else max(0.0, self._sync_at - monotonic())

    def _sync_if_due(self, *, now: bool = False) -> None:
        if self._own is None or self._sync_at is None or not (now or monotonic() >= self._sync_at):
            return
        self._sync_at = None
        # What is acknowledged by now needs no disk.
        if self._own.size_bytes:
            try:
                self._own.sync()
            except OSError as error:
                self._fail(error)

    def _keep(self, payload: bytes, spans: int) -> None:
        if self._own is None and self._place.directory is not None and monotonic() >= self._reopen_at:
            self._own = self._open()
        if self._own is not None:
            try:
                # What dead processes left counts too: a process that is started again and again is bounded as one.
                left = sum(one.size_bytes for one in list(self._adopted))
                has_room = left + len(payload) <= self._place.max_bytes and self._own.append(payload, spans)
            except OSError as error:
                self._fail(error)
            else:
                self._tell_room(has_room)
                if has_room:
                    self._counts.spool(spans)
                    self._failure = ""
                    if self._sync_at is None:
                        self._sync_at = monotonic() + self._place.sync_s
                else:
                    self._counts.drop(span_counts.SPOOL_FULL, spans)
                return
        if not self._memory.append(payload, spans):
            self._counts.drop(span_counts.MEMORY_FULL, spans)

    def _open(self) -> SpanSpool | None:
        directory, service, max_bytes, _ = self._place
        if directory is None:
            return None
        try:
            return SpanSpool.create(directory, service, max_bytes, self._counts.tear)
        except OSError as error:
            self._reopen_at = monotonic() + _REOPEN_EVERY_S
            self._fail(error)
            return None

    def _fail(self, error: OSError) -> None:
        """Say it once, until a write has worked again."""
        if not self._failure:
            _log.error(
                "the spool cannot be written: spans are kept in memory, and end with this process",
                extra={"directory": str(self._place.directory), "cause": str(error)},
            )
        self._failure = str(error) or type(error).__name__

    def _tell_room(self, has_room: bool) -> None:
        if has_room is self._is_full:
            self._is_full = not has_room
            if self._is_full:
                _log.error("the spool is full: spans are dropped", extra={"max_bytes": self._place.max_bytes})
            else:
                _log.info("the spool has room again", extra={"dropped": self._counts.dropped})

    # The sender's thread.

    def _deliver(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._schedule_s)
            self._wake.clear()
            self._try_to_send()
        # The writer ends once all is written.
        self._writer.join()
        self._try_to_send()

    def _try_to_send(self) -> None:
        try:
            self._adopt()
            self._send_all()
        except Exception as error:
            # A disk that cannot be read, say: it must not end the thread.
            _log.error("spans cannot be sent from the spool", exc_info=error)

    def _adopt(self) -> None:
        directory = self._place.directory
        if directory is None or self._stopping.is_set() or monotonic() < self._adopt_at:
            return
        self._adopt_at = monotonic() + _ADOPT_EVERY_S
        for path in spools_of(directory, self._place.service):
            spool = SpanSpool.adopt(path, self._counts.tear)
            if spool is not None:
                self._counts.adopt()
                _log.info("the spool of a dead process is taken over", extra={"bytes": spool.size_bytes})
                self._adopted.append(spool)

    def _send_all(self) -> None:
        for adopted in list(self._adopted):
            if not self._send_from(adopted):
                return
            self._adopted.remove(adopted)
            adopted.close()
        for spool in (self._own, self._memory):
            if spool is not None and not self._send_from(spool):
                return

    def _send_from(self, spool: SpanSpool | MemorySpool) -> bool:
        """False when the process stops before all was acknowledged."""
        while (chunk := spool.read()) is not None:
            if not self._send_chunk(chunk):
                return False
            spool.acknowledge(chunk.end)
        return True

    def _send_chunk(self, chunk: Chunk) -> bool:
        pending = [chunk.payload]
        while pending:
            answer = self._send_until_answered(pending[-1])
            if answer is None:
                return False
            request = pending.pop()
            if answer.verdict is Verdict.REFUSED:
                halves = halve(request)
                pending += halves
                if not halves:
                    self._refused(1, answer.detail)
            elif answer.rejected:
                self._refused(answer.rejected, answer.detail)
        self._counts.acknowledge(chunk.spans)
        return True

    def _refused(self, spans: int, detail: str) -> None:
        self._counts.drop(span_counts.REFUSED, spans)
        _log.error("the collector refuses spans for what they are", extra={"spans": spans, "detail": detail})

    def _send_until_answered(self, request: bytes) -> Answer | None:
        """STORED or REFUSED, after any number of attempts; None when the process stops."""
        began, is_told = monotonic(), False
        for pause_s in pauses():
            answer = self._send(request)
            if answer.verdict is not Verdict.LATER:
                if is_told:
                    _log.info("spans are acknowledged again", extra={"after_s": round(monotonic() - began, 1)})
                return answer
            if not is_told and monotonic() - began > _TELL_AFTER_S:
                is_told = True
                _log.warning("no collector takes spans", extra={"detail": answer.detail})
            wait_s = max(pause_s, answer.pause_s)
            if self._stopping.is_set():
                if monotonic() + wait_s >= self._stop_at:
                    return None
                sleep(wait_s)
            else:
                self._stopping.wait(wait_s)
        return None
