"""OTLP requests to the collectors, over mTLS, each to the next one: one attempt, and what its answer means."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from typing import NamedTuple, cast

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from services.runtime.mtls import channel_credentials
from services.runtime.settings import ServiceSettings

_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SEND_TIMEOUT_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # In turn: a collector that is started later gets its share, and one that is gone is left out.
    ("grpc.lb_policy_name", "round_robin"),
    # One that hangs is given up after 25 s. Not sooner: servers of gRPC's defaults take frequent pings for an attack,
    # and allow two without data between them, which is as many as are sent.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 2),
    # One that came back is found within seconds, and so is the new address of a name.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
)


class Verdict(Enum):
    STORED = auto()  # whoever acknowledges answers for it
    REFUSED = auto()  # for what it is: sent again as it is, it would be refused again
    LATER = auto()


class Answer(NamedTuple):
    verdict: Verdict
    rejected: int = 0  # spans of a request that is stored otherwise
    detail: str = ""
    pause_s: float = 0.0  # the server's wish


class SpanSender:
    def __init__(self, endpoint: str, settings: ServiceSettings) -> None:
        """`endpoint` is `https://HOST:PORT`, or a target of gRPC: `dns:///NAME:PORT`, `ipv4:HOST:PORT,HOST:PORT`.

        Raises:
            ValueError: it is http://, which would do without mTLS.
        """
        if endpoint.startswith("http://"):
            raise ValueError("OTEL_EXPORTER_OTLP_ENDPOINT: spans go over mTLS only: https://, dns:/// or ipv4:")
        target = endpoint.removeprefix("https://").rstrip("/")
        # The certificate names the service; on loopback the address does not.
        name = ("grpc.ssl_target_name_override", settings.collector_name)
        self._channel = grpc.secure_channel(target, channel_credentials(settings.tls_dir), (*_OPTIONS, name))
        # The request is bytes already.
        self._export = self._channel.unary_unary(_EXPORT, None, ExportTraceServiceResponse.FromString)

    def send(self, request: bytes) -> Answer:
        """Send a serialised ExportTraceServiceRequest once; blocks for 10 s at most."""
        try:
            response = self._export(request, timeout=SEND_TIMEOUT_S)
        except grpc.RpcError as error:
            return _answer_of(error)
        except ValueError as error:
            # The channel is closed.
            return Answer(Verdict.LATER, detail=str(error))
        # OTLP: what is rejected in a partial success must not be sent again.
        partial = response.partial_success
        return Answer(Verdict.STORED, partial.rejected_spans, partial.error_message)

    def close(self) -> None:
        self._channel.close()


def pauses() -> Iterator[float]:
    """Seconds to wait before the next attempt, and the next: each for a random part, so that clients do not fall in
    step."""
    limit = _FIRST_PAUSE_S
    while True:
        yield random.uniform(limit / 2, limit)  # noqa: S311 - no secret
        limit = min(limit * 2, _LONGEST_PAUSE_S)


def _answer_of(error: grpc.RpcError) -> Answer:
    code, details = error.code(), error.details() or ""
    detail = f"{code.name}: {details[:200]}"
    # Everything else may be mended on the other side, a missing permission too: what is lost for good is lost by us.
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return Answer(Verdict.REFUSED, detail=detail)
    for key, value in cast(Iterable[tuple[str, bytes]], error.trailing_metadata() or ()):
        if key == "google.rpc.retryinfo-bin":
            delay = RetryInfo.FromString(value).retry_delay
            return Answer(
                Verdict.LATER, detail=detail, pause_s=min(delay.seconds + delay.nanos / 1e9, _LONGEST_PAUSE_S)
            )
    return Answer(Verdict.LATER, detail=detail)
