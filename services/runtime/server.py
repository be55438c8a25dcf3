"""A gRPC server: mTLS with the caller allow-list, spans, errors on the wire, health, reflection, graceful stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

import grpc
import uvloop
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from services.core.errors import Reason, WalletError
from services.runtime import fault_points, rpc_tracing
from services.runtime.channel import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES
from services.runtime.health import SERVICE_NAME as HEALTH_SERVICE
from services.runtime.health import Health
from services.runtime.logs import start_logging
from services.runtime.metric_export import ProcessMetrics, start_metrics
from services.runtime.mtls import Callers, caller_identity, load_callers, may_call, server_credentials
from services.runtime.rpc_errors import status_code, to_status_metadata
from services.runtime.settings import ServiceSettings
from services.runtime.telemetry import start_telemetry, stop_telemetry

_log = logging.getLogger(__name__)
_SWITCH_INTERVAL_S = 0.0005

_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Below the channels' own interval: a server takes more for an attack, and closes the connection.
    ("grpc.http2.min_ping_interval_without_data_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.so_reuseport", 0),
)


StreamBehaviour = Callable[..., AsyncIterator[Any]]

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor


class CallGate(Interceptor):
    """Around every handler, once: who calls, the span, and `WalletError` to status. Handlers just raise."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return handler
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def _wrap(self, method: str, handler: Handler) -> Handler:
        service, _ = rpc_tracing.split_method(method)
        traced = service not in rpc_tracing.UNTRACED_SERVICES
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(method, traced, handler.unary_unary),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                self._unary(method, traced, handler.stream_unary),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, cast(StreamBehaviour, handler.unary_stream)),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.stream_stream_rpc_method_handler(
            self._stream(method, cast(StreamBehaviour, handler.stream_stream)),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _check_caller(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        caller = caller_identity(context.auth_context())
        if not may_call(self._callers, caller, method) and rpc_tracing.split_method(method)[0] != HEALTH_SERVICE:
            raise WalletError(Reason.CALLER_NOT_ALLOWED, "the caller is not on the allow-list", caller=caller)

    def _unary(
        self, method: str, traced: bool, behaviour: Callable[..., Awaitable[Any]]
    ) -> Callable[..., Awaitable[Any]]:
        async def untraced_call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                self._check_caller(method, context)
                return await behaviour(request, context)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                return _refuse(context, _as_wallet_error(method, error))

        async def traced_call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            parent = rpc_tracing.incoming_context(context.invocation_metadata() or ())
            span = rpc_tracing.start_span(method, SpanKind.SERVER, parent)
            with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
                try:
                    self._check_caller(method, context)
                    reply = await behaviour(request, context)
                    rpc_tracing.record_ok(span)
                    return reply
                except asyncio.CancelledError:
                    rpc_tracing.record_cancelled(span)
                    raise
                except Exception as error:
                    refusal = _as_wallet_error(method, error)
                    rpc_tracing.record_error(span, refusal)
                    return _refuse(context, refusal)

        return traced_call if traced else untraced_call

    def _stream(self, method: str, behaviour: StreamBehaviour) -> StreamBehaviour:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                self._check_caller(method, context)
                async for message in behaviour(request, context):
                    yield message
            except asyncio.CancelledError:
                raise
            except Exception as error:
                _refuse(context, _as_wallet_error(method, error))

        return call


def _as_wallet_error(method: str, error: Exception) -> WalletError:
    if isinstance(error, WalletError):
        return error
    # The text may hold anything: it goes to the log under this trace id, never onto the wire.
    _log.error("unhandled error in %s", method, exc_info=error)
    return WalletError(Reason.INTERNAL, Reason.INTERNAL.meaning)


def _refuse(context: grpc.aio.ServicerContext[Any, Any], error: WalletError) -> None:
    # Not abort(): it would record its own exception on the span of every expected refusal.
    context.set_code(status_code(error))
    context.set_details(error.message)
    context.set_trailing_metadata(to_status_metadata(error))


class GrpcServer:
    """The gRPC side of one service.

    `async with GrpcServer("signer", settings, [SIGNER_SERVICE_NAME]) as server:` after adding servicers to `.grpc`
    with the generated functions; leaving the block drains for `shutdown_grace_s`.
    """

    def __init__(self, service: str, settings: ServiceSettings, service_names: list[str]) -> None:
        self._settings = settings
        self._names = service_names
        self.grpc = grpc.aio.server(interceptors=[CallGate(load_callers(settings.callers, service))], options=_OPTIONS)
        self._health = Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        reflection.enable_server_reflection([*service_names, HEALTH_SERVICE, reflection.SERVICE_NAME], self.grpc)
        self.port = self.grpc.add_secure_port(settings.listen, server_credentials(settings.tls_dir))

    def report(self, part: str, serving: bool) -> None:
        """Say whether this replica serves a part of the service that not every replica serves at all times."""
        self._health.report(part, serving)

    async def __aenter__(self) -> GrpcServer:
        await self.grpc.start()
        for name in ("", *self._names):
            self._health.report(name, serving=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._health.stop()
        await self.grpc.stop(self._settings.shutdown_grace_s)


async def wait_for_stop(*workers: asyncio.Task[None]) -> None:
    """Return on SIGTERM or SIGINT. A background worker that ends before, ends the process: its error is raised."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({stopped, *workers}, return_when=asyncio.FIRST_COMPLETED)
    for worker in done - {stopped}:
        worker.result()
    _log.info("stopping")


def run_service(
    service: str,
    settings: ServiceSettings,
    main: Callable[[], Coroutine[Any, Any, None]],
    signature_roots: frozenset[str] = frozenset(),
) -> None:
    """Logs, telemetry, event loop: the frame of every service's `__main__`."""
    start_logging(service, settings.log_level)
    metrics = start_metrics(service, settings)
    start_telemetry(service, settings, signature_roots)
    fault_points.prepare(service, settings.env)
    _calm_collector()
    # The event loop waits this long, by default 5 ms, for a thread that computes: the span exporter's above all.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        uvloop.run(_scraped(main, settings.metrics_listen, metrics))
    except WalletError as error:
        # A token that does not open, a policy that is malformed: the reason says it all.
        _log.critical("the service has ended: %s", error, extra={"reason": error.reason.name})
        sys.exit(1)
    except Exception:
        # One JSON line, like everything that is printed.
        _log.critical("the service has ended by an error", exc_info=True)
        sys.exit(1)
    finally:
        stop_telemetry()
        if metrics is not None:
            metrics.stop()


async def _scraped(main: Callable[[], Coroutine[Any, Any, None]], listen: str, metrics: ProcessMetrics | None) -> None:
    if not listen or metrics is None:
        await main()
        return
    # Here: whoever is not scraped does without an HTTP server.
    from services.runtime.metrics_http import serve_metrics

    async with serve_metrics(listen, metrics):
        await main()


def _calm_collector() -> None:
    """Requests leave next to no cycles behind: looking for them as often as Python does costs a twentieth of the time.
    What was made at the start stays, and is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
