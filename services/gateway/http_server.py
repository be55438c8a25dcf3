"""uvicorn on this process's event loop, stopped by our own signal handling, and bounded where its parser is not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.core.errors import Reason
from services.gateway.problems import MEDIA_TYPE

# Request line and header fields of one request.
MAX_HEAD_BYTES = 64 * 1024
# All of one request with its framing: a body of 1 MiB in chunks of one byte is six times as long.
MAX_REQUEST_BYTES = 8 * 1024 * 1024


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(HttpToolsProtocol):
    """llhttp collects heads and trailers of any size; this one ends the connection. What is no HTTP gets a problem."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = False
        self._bytes = 0

    def data_received(self, data: bytes) -> None:
        # Of a read in which a request begins, all counts: one read is at most 256 KiB.
        self._bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._bytes > MAX_HEAD_BYTES:
            self._end_with(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head of the request is too large")
        elif self._bytes > MAX_REQUEST_BYTES:
            self._end_with(HTTPStatus.BAD_REQUEST, "the request is too large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        # RFC 9110 §6.5.1: a trailer field is not to be taken for a header field.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._bytes = 0

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body:
            # The request before this one is complete and has its answer still; nothing more is read.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        self._end_with(HTTPStatus.BAD_REQUEST, "this is no valid HTTP/1.1 request")

    def _end_with(self, status: HTTPStatus, detail: str) -> None:
        reason = Reason.INVALID_REQUEST
        problem = {
            "type": f"urn:goldenlink:reason:{reason.name}",
            "title": reason.meaning,
            "status": status.value,
            "detail": detail,
            "reason": reason.name,
        }
        body = json.dumps(problem)
        self.transport.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {MEDIA_TYPE}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode("ascii")
        )
        self.transport.close()


@contextlib.asynccontextmanager
async def serve_http(app: ASGIApp, host: str, port: int, grace_s: float) -> AsyncIterator[int]:
    """Serve while the block runs; yields the port. Leaving it waits for open requests, `grace_s` seconds at most."""
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        http=_Protocol,
        server_header=False,
        # The peer's address is the client's: nobody's X-Forwarded-For is believed.
        proxy_headers=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=max(1, int(grace_s)),
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        await serving
