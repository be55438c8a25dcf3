"""Channels to peers: mTLS, keepalive, a deadline on every call, spans, and `WalletError` instead of RPC errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc
from opentelemetry.trace import SpanKind

from services.core.errors import Reason, WalletError
from services.runtime import rpc_tracing
from services.runtime.mtls import channel_credentials
from services.runtime.rpc_errors import from_rpc_error
from services.runtime.settings import ServiceSettings

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
# An error's details travel as metadata; above gRPC's default of 8 KiB a refusal would arrive as RESOURCE_EXHAUSTED.
MAX_METADATA_BYTES = 64 * 1024
DEFAULT_TIMEOUT_S = 10.0

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
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
    """

    def __init__(self, peer: str, settings: ServiceSettings) -> None:
        self._peer = peer
        self._channel = grpc.aio.secure_channel(
            settings.peer_target(peer),
            channel_credentials(settings.tls_dir),
            # The certificate names the service; on loopback the address does not.
            options=(*_OPTIONS, ("grpc.ssl_target_name_override", peer)),
        )

    async def close(self) -> None:
        await self._channel.close(None)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return _UnaryCall(self._peer, method, self._channel.unary_unary(method, *args, **kwargs))

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        return _StreamCall(self._peer, method, self._channel.unary_stream(method, *args, **kwargs))


class _UnaryCall:
    def __init__(self, peer: str, method: str, inner: Any) -> None:
        self._peer = peer
        self._method = method
        self._inner = inner
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
        try:
            return await self._inner(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._peer) from None


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
