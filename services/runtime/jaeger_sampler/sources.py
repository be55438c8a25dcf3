"""How a collector is asked: by HTTP or by gRPC, once a call, with a limit to the time and the size of an answer.

Each question has a connection of its own. It is asked a few times a minute, and so finds a collector that moved, and
works in a child of the process.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from .strategy import Strategy, parse_strategy, read_strategy

if TYPE_CHECKING:
    import grpc

TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 1024 * 1024
# Of the collector, in Jaeger 2.
_GRPC_PORT = 5779

# Raises SourceFailed or MalformedStrategy.
Source = Callable[[], Strategy]


class SourceFailed(Exception):
    """No answer; the text says why."""


def open_source(endpoint: str, service_name: str) -> Source:
    """By gRPC where the endpoint has no path, else by HTTP; https is verified by the system's certificates.

    Raises:
        ValueError: gRPC is asked for, and grpcio is not installed.
    """
    url = urlsplit(endpoint)
    if url.path not in ("", "/"):
        return http_source(endpoint, service_name, ssl.create_default_context() if url.scheme == "https" else None)
    try:
        import grpc
    except ImportError:
        raise ValueError(f"asking {endpoint} by gRPC needs grpcio; an endpoint with a path is asked by HTTP") from None
    return grpc_source(endpoint, service_name, grpc.ssl_channel_credentials() if url.scheme == "https" else None)


def http_source(
    endpoint: str,
    service_name: str,
    context: ssl.SSLContext | None = None,
    server_name: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Source:
    """GET `endpoint`?service=`service_name`, over TLS with a `context`. Redirects are not followed.

    The server's certificate must name `server_name`, by default the endpoint's host.
    """
    url = urlsplit(endpoint)
    host, port = url.hostname or "", url.port or (443 if context else 80)
    target = f"{url.path}?service={quote(service_name, safe='')}"

    def ask() -> Strategy:
        connection = HTTPConnection(host, port, timeout=timeout_s)
        try:
            connection.connect()
            if context is not None:
                connection.sock = context.wrap_socket(connection.sock, server_hostname=server_name or host)
            return parse_strategy(_get(connection, target, timeout_s))
        except (OSError, HTTPException) as error:
            raise SourceFailed(f"{type(error).__name__}: {error}") from None
        finally:
            connection.close()

    return ask


def _get(connection: HTTPConnection, target: str, timeout_s: float) -> bytes:
    """The body of a 200. A socket's own time limit is for each piece: a server that drips would hold us for ever."""
    opened: socket.socket = connection.sock
    late = threading.Event()

    def cut() -> None:
        late.set()
        try:
            # Not the method of a TLS socket, which takes the session away from under the thread that reads.
            socket.socket.shutdown(opened, socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed already

    watchdog = threading.Timer(timeout_s, cut)
    watchdog.daemon = True
    watchdog.start()
    try:
        connection.request("GET", target, headers={"Accept": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise SourceFailed(f"HTTP status {response.status}")
        body = response.read(MAX_ANSWER_BYTES + 1)
    except (OSError, HTTPException):
        if late.is_set():
            raise SourceFailed(f"no whole answer within {timeout_s:g} s") from None
        raise
    finally:
        watchdog.cancel()
    if late.is_set():
        raise SourceFailed(f"no whole answer within {timeout_s:g} s")
    if len(body) > MAX_ANSWER_BYTES:
        raise SourceFailed(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return body


def grpc_source(
    endpoint: str,
    service_name: str,
    credentials: grpc.ChannelCredentials | None = None,
    server_name: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Source:
    """jaeger.api_v2.SamplingManager/GetSamplingStrategy at the endpoint's address, over TLS with `credentials`.

    The server's certificate must name `server_name`, by default the endpoint's host.
    """
    # Here, so that HTTP works without them.
    import grpc
    from google.protobuf.json_format import MessageToDict

    from protos.jaeger.api_v2.sampling_pb2 import SamplingStrategyParameters
    from protos.jaeger.api_v2.sampling_pb2_grpc import SamplingManagerStub

    url = urlsplit(endpoint)
    address = url.netloc if url.port is not None else f"{url.netloc.rstrip(':')}:{_GRPC_PORT}"
    options: list[tuple[str, int | str]] = [("grpc.max_receive_message_length", MAX_ANSWER_BYTES)]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    question = SamplingStrategyParameters(serviceName=service_name)

    def ask() -> Strategy:
        with (
            grpc.secure_channel(address, credentials, options)
            if credentials is not None
            else grpc.insecure_channel(address, options)
        ) as channel:
            try:
                answer = SamplingManagerStub(channel).GetSamplingStrategy(question, timeout=timeout_s)
            except grpc.RpcError as error:
                raise SourceFailed(f"gRPC status {error.code().name}: {error.details()}") from None
        return read_strategy(MessageToDict(answer))

    return ask
