"""uvicorn on this process's event loop, stopped by our own signal handling."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
        http="httptools",
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
