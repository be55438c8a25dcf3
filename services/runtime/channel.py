"""Channels to peers: mTLS, keepalive, a deadline on every call, spans, and `WalletError` instead of RPC errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, cast

import grpc
from opentelemetry.trace import SpanKind

from services.core.errors import Reason, WalletError
from services.runtime import fault_points, rpc_tracing
from services.runtime.mtls import channel_credentials
from services.runtime.rpc_errors import from_rpc_error
from services.runtime.settings import ServiceSettings

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
# An error's details travel as metadata; above gRPC's default of 8 KiB a refusal would arrive as RESOURCE_EXHAUSTED.
MAX_METADATA_BYTES = 64 * 1024
DEFAULT_TIMEOUT_S = 10.0
# A call waits so long, and for half of its own time limit at most, for a replica that serves the part it is about:
# longer than a standby of evidence takes to become the one that appends.
_PART_WAIT_S = 3.5

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # A peer that was frozen keeps its connections: it is given up after 6 s, and its calls go to another replica.
    ("grpc.keepalive_time_ms", 4_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.lb_policy_name", "round_robin"),
    # A peer that came back is found within a second, not after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class PeerChannel:
    """A channel for generated stubs: `SignerStub(PeerChannel("signer", settings))`.

    Unary calls are `await stub.Method(request, timeout=seconds)`; streams are async iterators. Both raise WalletError.
    Calls go to all replicas in turn; with `part`, to those that report that they serve it (`GrpcServer.report`).
    """

    def __init__(self, peer: str, settings: ServiceSettings, part: str | None = None) -> None:
        self._peer = peer
        self._channel = grpc.aio.secure_channel(
            settings.peer_target(peer),
            channel_credentials(settings.tls_dir),
            # The certificate names the service; on loopback the address does not.
            options=(*_OPTIONS, *_watching(part), ("grpc.ssl_target_name_override", peer)),
        )
        self._gate = _Gate(self._channel, peer, part) if part is not None else None

    async def close(self) -> None:
        if self._gate is not None:
            await self._gate.close()
        await self._channel.close(None)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return _UnaryCall(self._peer, method, self._channel.unary_unary(method, *args, **kwargs), self._gate)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return _StreamCall(self._peer, method, self._channel.unary_stream(method, *args, **kwargs))


def _watching(part: str | None) -> tuple[tuple[str, str], ...]:
    """The service config that leaves a replica out for as long as it does not serve `part` (gRFC A17)."""
    if part is None:
        return ()
    config = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": part}}
    return (("grpc.service_config", json.dumps(config)),)


class _Gate:
    """Holds calls back until a replica serves the part: they would fail at once while it moves from one to another."""

    def __init__(self, channel: grpc.aio.Channel, peer: str, part: str) -> None:
        self._channel = channel
        self._peer = peer
        self._part = part
        self._opening: asyncio.Task[None] | None = None

    async def pass_through(self, timeout_s: float) -> float:
        """What is left of `timeout_s` once a replica serves the part. Raises WalletError SERVICE_UNAVAILABLE."""
        if self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return timeout_s
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._channel.channel_ready())
        loop = asyncio.get_running_loop()
        began = loop.time()
        done, _ = await asyncio.wait({self._opening}, timeout=min(_PART_WAIT_S, timeout_s / 2))
        if not done:
            raise WalletError(
                Reason.SERVICE_UNAVAILABLE, f"{self._peer}: no replica serves {self._part}", service=self._peer
            )
        return timeout_s - (loop.time() - began)

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            with suppress(asyncio.CancelledError):
                await self._opening


class _UnaryCall:
    def __init__(self, peer: str, method: str, inner: Any, gate: _Gate | None) -> None:
        self._peer = peer
        self._method = method
        self._inner = inner
        self._gate = gate
        self._traced = rpc_tracing.split_method(method)[0] not in rpc_tracing.UNTRACED_SERVICES

    async def __call__(self, request: object, *, timeout: float = DEFAULT_TIMEOUT_S) -> Any:
        if not self._traced:
            return await self._send(request, timeout, ())
        span = rpc_tracing.start_span(self._method, SpanKind.CLIENT)
        try:
            reply = await self._send(request, timeout, rpc_tracing.outgoing_metadata(span))
            rpc_tracing.record_ok(span)
            return reply
        except asyncio.CancelledError:
            rpc_tracing.record_cancelled(span)
            raise
        except WalletError as error:
            rpc_tracing.record_error(span, error)
            raise
        except Exception:
            # A request that does not serialise, a closed channel: nothing was sent.
            rpc_tracing.record_error(span, WalletError(Reason.INTERNAL, Reason.INTERNAL.meaning))
            raise
        finally:
            span.end()

    async def _send(self, request: object, timeout_s: float, metadata: tuple[tuple[str, str], ...]) -> Any:
        if self._gate is not None:
            timeout_s = await self._gate.pass_through(timeout_s)
        fault_points.before("call", self._method)
        try:
            # The part may have moved on since the gate was passed: a call that was not sent yet waits once more.
            reply = await self._inner(
                request, timeout=timeout_s, metadata=metadata, wait_for_ready=self._gate is not None
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._peer) from None
        fault_points.after("call", self._method)
        return reply


class _StreamCall:
    """Server streams follow another process for a long time; they get no span of their own and no deadline."""

    def __init__(self, peer: str, method: str, inner: Any) -> None:
        self._peer = peer
        self._method = method
        self._inner = inner

    async def __call__(self, request: object, *, timeout: float | None = None) -> AsyncIterator[Any]:
        try:
            async for message in self._inner(request, timeout=timeout):
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._peer) from None


def as_channel(channel: PeerChannel) -> grpc.aio.Channel:
    """What the generated stubs' type annotations ask for; they use only `unary_unary` and `unary_stream`."""
    return cast(grpc.aio.Channel, channel)
