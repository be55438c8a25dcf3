"""The signer's side of its children: spawn, feed, watch, kill, respawn.

A child answers in order, so when one hangs or dies the oldest unanswered digest is to blame, and only that one is given
up; whatever waited behind it goes to the next child.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import NamedTuple, cast

from services.core.errors import Reason, WalletError
from services.runtime import fault_points
from services.runtime.metric_names import WALLET_TOKEN_TIMEOUTS, WALLET_TOKEN_WORKER_ENDS
from services.runtime.metrics import counter
from services.runtime.settings import SERVICES_DIR
from services.runtime.token import ErrorOrigin, TokenIdentity
from services.signer.frames import (
    DigestToSign,
    TokenSignature,
    decode_greeting,
    decode_results,
    encode_request,
    error_of,
    frame,
    split_frame,
)
from services.signer.settings import PoolSettings

_log = logging.getLogger(__name__)
_timeouts = counter(WALLET_TOKEN_TIMEOUTS)
_ends = counter(WALLET_TOKEN_WORKER_ENDS)

WORKER_COMMAND = (sys.executable, "-m", "services.signer.token_worker")

# Signatures between two answers of a child: about 10 ms of work, so a child with work is never silent for long.
_CHUNK = 25
# A child that starts makes the transport pair the first time, about a second.
_START_TIMEOUT_S = 30.0
# A caller waits so long for a child: a new one takes half a second, more on a busy machine.
_READY_TIMEOUT_S = 5.0
_RESPAWN_PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0)
# Falls in a row without a single answer between: the second gives up the digest, the third the batch.
_FALLS_FOR_DIGEST = 2
_FALLS_FOR_BATCH = 3


class TokenFailure(NamedTuple):
    """No signature, and why. `asked` is false when no child took the digest."""

    error: WalletError
    duration_ms: float
    asked: bool


TokenOutcome = TokenSignature | TokenFailure


class _Fall(NamedTuple):
    """A child ended with work undone."""

    error: WalletError
    at_head: bool  # whether this request was the one being answered


class _Request:
    def __init__(self, size: int) -> None:
        self.size = size
        self.answers: list[TokenOutcome] = []
        self.done: asyncio.Future[_Fall | None] = asyncio.get_running_loop().create_future()


class _Pipe(asyncio.Protocol):
    """Frames of a child as they come, without a task between the socket and who waits."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.greeting: asyncio.Future[bytes] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.take: Callable[[bytes], None] | None = None
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            while (body := split_frame(self._received)) is not None:
                if self.take is not None:
                    self.take(body)
                elif not self.greeting.done():
                    self.greeting.set_result(body)
        except ValueError:
            # Nonsense: this child is of no more use.
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.greeting.done():
            self.greeting.set_exception(EOFError())
        if not self.lost.done():
            self.lost.set_result(None)

    def write(self, body: bytes) -> None:
        assert self._transport is not None
        self._transport.write(frame(body))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class TokenWorker:
    """One child, from its greeting to its end."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        pipe: _Pipe,
        timeout_s: float,
        token: TokenIdentity,
        transport_key: bytes,
    ) -> None:
        self.pid = process.pid
        self.token = token
        self.transport_key = transport_key
        self.waiting = 0  # digests not answered yet
        self._process = process
        self._pipe = pipe
        self._timeout_s = timeout_s
        self._requests: deque[_Request] = deque()
        self._watchdog: asyncio.TimerHandle | None = None
        self._timed_out = False
        self._ended = False
        pipe.take = self._take
        pipe.lost.add_done_callback(lambda _: self._end())

    @classmethod
    async def spawn(cls, command: Sequence[str], timeout_s: float) -> TokenWorker:
        """Start a child and wait for its greeting.

        Raises:
            WalletError: what the child says is wrong with its token, or TOKEN_UNAVAILABLE if it says nothing.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                    cwd=SERVICES_DIR.parent,
                )
            except OSError as error:
                ours.close()
                raise _unavailable("a signing child cannot be started", ErrorOrigin.SERVICE) from error
        _, pipe = await asyncio.get_running_loop().create_unix_connection(_Pipe, sock=ours)
        try:
            greeting = decode_greeting(await asyncio.wait_for(pipe.greeting, _START_TIMEOUT_S))
            if "refused" in greeting:
                raise error_of(greeting["refused"])
            token = TokenIdentity(**greeting["token"])
            return cls(process, pipe, timeout_s, token, bytes.fromhex(greeting["transport_key"]))
        except BaseException as error:
            pipe.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if isinstance(error, EOFError | OSError | ValueError | TimeoutError):
                raise _unavailable("a signing child did not start", ErrorOrigin.DRIVER) from error
            raise

    @property
    def alive(self) -> bool:
        return not self._ended

    async def sign(self, digests: Sequence[DigestToSign], chunk: int) -> tuple[list[TokenOutcome], _Fall | None]:
        """The outcomes in order, as far as the child got; with its fall if it did not get to the end.

        Only while `alive`, with no await between.
        """
        request = _Request(len(digests))
        self._requests.append(request)
        self.waiting += request.size
        if len(self._requests) == 1:
            self._watch()
        self._pipe.write(encode_request(digests, chunk))
        # A caller that gives up leaves its request in the queue: the child answers it, and nobody listens.
        fall = await request.done
        return request.answers, fall

    async def ended(self) -> None:
        """Return once the child is gone."""
        await asyncio.shield(self._pipe.lost)
        await self._process.wait()

    async def stop(self) -> None:
        """End the child: at once, for its work is remembered by those who asked."""
        self._kill()
        await self.ended()

    def _take(self, body: bytes) -> None:
        """The results of one frame. Raises ValueError for what is none."""
        for result in decode_results(body):
            if not self._requests:
                raise ValueError("a result that nobody asked for")
            request = self._requests[0]
            if isinstance(result, WalletError):
                request.answers.append(TokenFailure(result, 0.0, asked=True))
            else:
                request.answers.append(result)
            self.waiting -= 1
            if len(request.answers) == request.size:
                self._requests.popleft()
                if not request.done.done():
                    request.done.set_result(None)
        self._watch()

    def _end(self) -> None:
        # The pipe may have ended before the child.
        self._kill()
        self._ended = True
        self._stop_watching()
        if self._timed_out:
            error = WalletError(Reason.TOKEN_TIMEOUT, Reason.TOKEN_TIMEOUT.meaning, origin=ErrorOrigin.TOKEN)
        else:
            error = _unavailable("the signing child ended", ErrorOrigin.DRIVER)
        for place, request in enumerate(self._requests):
            if not request.done.done():
                request.done.set_result(_Fall(error, at_head=place == 0))
        self._requests.clear()

    def _watch(self) -> None:
        self._stop_watching()
        if self._requests:
            self._watchdog = asyncio.get_running_loop().call_later(self._timeout_s, self._time_out)

    def _stop_watching(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _time_out(self) -> None:
        self._timed_out = True
        _timeouts.add(1)
        _log.warning("a token call took too long; its child is killed", extra={"child": self.pid})
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class TokenPool:
    """`signer_workers` children over one token; a child that ends is replaced."""

    def __init__(self, settings: PoolSettings, command: Sequence[str] = WORKER_COMMAND) -> None:
        self._command = command
        self._size = settings.signer_workers
        self._timeout_s = settings.token_timeout_s
        self._workers: list[TokenWorker] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._changed = asyncio.Condition()
        # Why there is no child: the last one's refusal.
        self._refusal = _unavailable("the token is not open yet", ErrorOrigin.SERVICE)
        self._tried = False
        self._identity: TokenIdentity | None = None

    @property
    def size(self) -> int:
        return self._size

    @property
    def ready(self) -> bool:
        return any(worker.alive for worker in self._workers)

    @property
    def refusal(self) -> WalletError:
        """Why `ready` is false."""
        return self._refusal

    @property
    def identity(self) -> TokenIdentity:
        """The token as the newest child found it. Raises the refusal where there was none yet."""
        if self._identity is None:
            raise self._refusal
        return self._identity

    async def start(self) -> None:
        """Start the children; return when the first is ready, or has said why it is not."""
        # One first: it makes the transport pair that the others find.
        self._keepers.append(asyncio.create_task(self._keep()))
        async with self._changed:
            await self._changed.wait_for(lambda: self._tried)
        self._keepers.extend(asyncio.create_task(self._keep()) for _ in range(1, self._size))

    async def stop(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        self._workers.clear()

    async def transport_key(self) -> bytes:
        """SubjectPublicKeyInfo (DER) of the token's transport pair.

        Raises:
            WalletError: TOKEN_UNAVAILABLE or TOKEN_PIN_INCORRECT if no child gets ready in time.
        """
        return (await self._worker()).transport_key

    async def sign(self, digests: Sequence[DigestToSign]) -> list[TokenOutcome]:
        """One outcome each, in order; signatures are not verified."""
        outcomes: list[TokenOutcome] = []
        chunk, falls = _CHUNK, 0
        while len(outcomes) < len(digests):
            started = perf_counter()
            try:
                worker = await self._worker()
            except WalletError as error:
                rest = len(digests) - len(outcomes)
                return outcomes + [TokenFailure(error, 0.0, asked=falls > 0)] * rest
            fault_points.before("token", "sign")
            answers, fall = await worker.sign(digests[len(outcomes) :], chunk)
            fault_points.after("token", "sign")
            outcomes.extend(answers)
            if fall is None or not (fall.at_head or answers):
                continue
            # One answer a digest from here on, so that the next fall names its digest.
            chunk, falls = 1, 1 if answers else falls + 1
            lost = TokenFailure(fall.error, (perf_counter() - started) * 1000, asked=True)
            if falls >= _FALLS_FOR_BATCH:
                return outcomes + [lost] * (len(digests) - len(outcomes))
            if falls >= _FALLS_FOR_DIGEST:
                outcomes.append(lost)
        return outcomes

    async def _worker(self) -> TokenWorker:
        if not self.ready:
            if self._refusal.reason is Reason.TOKEN_PIN_INCORRECT:
                raise self._refusal
            try:
                async with asyncio.timeout(_READY_TIMEOUT_S), self._changed:
                    await self._changed.wait_for(lambda: self.ready)
            except TimeoutError:
                raise self._refusal from None
        return min((worker for worker in self._workers if worker.alive), key=lambda worker: worker.waiting)

    async def _keep(self) -> None:
        failures = 0
        while True:
            await asyncio.sleep(_RESPAWN_PAUSES_S[min(failures, len(_RESPAWN_PAUSES_S) - 1)])
            try:
                worker = await TokenWorker.spawn(self._command, self._timeout_s)
            except WalletError as error:
                failures += 1
                _log.warning("no signing child: %s", error.reason.name, extra={"cause": error.message})
                await self._change(refusal=error)
                if error.reason is Reason.TOKEN_PIN_INCORRECT:
                    # Tokens lock after a few wrong PINs: wait for an operator and a restart.
                    return
                continue
            failures = 0
            await self._change(added=worker)
            try:
                await worker.ended()
            finally:
                if worker in self._workers:
                    self._workers.remove(worker)
                await worker.stop()
            _ends.add(1)
            _log.warning("a signing child ended", extra={"child": worker.pid})
            self._refusal = _unavailable("the signing child ended", ErrorOrigin.DRIVER)

    async def _change(self, added: TokenWorker | None = None, refusal: WalletError | None = None) -> None:
        async with self._changed:
            self._tried = True
            if added is not None:
                self._workers.append(added)
                self._identity = added.token
            if refusal is not None:
                self._refusal = refusal
            self._changed.notify_all()


def _unavailable(message: str, origin: ErrorOrigin) -> WalletError:
    return WalletError(Reason.TOKEN_UNAVAILABLE, message, origin=origin)
