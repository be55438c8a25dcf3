"""A collector as a process of its own, to be killed: `python -m tests.fakes.otlp_collector PORT TLS_DIR FILE`.

It writes a line "trace_id span_id sha256-of-the-span" to FILE for each span, and answers after that.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.runtime.mtls import server_credentials


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, file: Path) -> None:
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        lines = [
            f"{span.trace_id.hex()} {span.span_id.hex()} {sha256(span.SerializeToString()).hexdigest()}\n"
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        os.write(self._descriptor, "".join(lines).encode())
        return trace_service_pb2.ExportTraceServiceResponse()


def main() -> None:
    port, tls_dir, file = sys.argv[1:]
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(Path(file)), server)  # type: ignore[no-untyped-call]
    server.add_secure_port(f"127.0.0.1:{port}", server_credentials(Path(tls_dir)))
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
