"""Collectors for samplers to ask: real HTTP and gRPC servers on loopback that answer what a test says."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc

from protos.jaeger.api_v2 import sampling_pb2, sampling_pb2_grpc

_STARTED_WITHIN_S = 10.0


class HttpCollector:
    """`answer(handler)` writes the response; `paths` are what was asked for."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.answer = answer
        self.paths: list[str] = []
        self.endpoint = ""
        self._asked = threading.Semaphore(0)

    def wait_for_questions(self, count: int) -> None:
        """A sampler asks again only after it has taken the answer before."""
        for _ in range(count):
            assert self._asked.acquire(timeout=_STARTED_WITHIN_S)

    @contextmanager
    def serving(self, context: ssl.SSLContext | None = None) -> Iterator[HttpCollector]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                collector.paths.append(self.path)
                collector._asked.release()
                collector.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        self.endpoint = f"{'https' if context else 'http'}://127.0.0.1:{server.server_address[1]}/sampling"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def body(text: bytes, status: int = 200) -> Callable[[BaseHTTPRequestHandler], None]:
    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        try:
            handler.wfile.write(text)
        except OSError:
            pass  # the sampler has read enough

    return write


class GrpcCollector(sampling_pb2_grpc.SamplingManagerServicer):
    def __init__(self, answer: Callable[[grpc.ServicerContext], sampling_pb2.SamplingStrategyResponse]) -> None:
        self.answer = answer
        self.services: list[str] = []
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def GetSamplingStrategy(self, request: Any, context: grpc.ServicerContext) -> sampling_pb2.SamplingStrategyResponse:
        self.services.append(request.serviceName)
        return self.answer(context)

    @contextmanager
    def serving(self, credentials: grpc.ServerCredentials | None = None) -> Iterator[GrpcCollector]:
        server = grpc.server(ThreadPoolExecutor(2))
        sampling_pb2_grpc.add_SamplingManagerServicer_to_server(self, server)
        self.port = (
            server.add_secure_port("127.0.0.1:0", credentials)
            if credentials
            else server.add_insecure_port("127.0.0.1:0")
        )
        server.start()
        try:
            yield self
        finally:
            server.stop(0).wait()
