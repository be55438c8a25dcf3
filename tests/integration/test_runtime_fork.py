"""Children of a process whose gRPC is busy: the C core's fork handlers must not run in them."""

from __future__ import annotations

import os
import subprocess
import sys

from services.runtime.settings import SERVICES_DIR

# With its own lines let through, the core tells of every fork that its handlers see.
_BUSY_PROCESS = """
import asyncio
import services
import grpc

async def echo(request, context):
    return request

async def call(channel, stopped):
    method = channel.unary_unary("/test.Echo/Echo")
    while not stopped.is_set():
        await method(b"busy")

async def main():
    server = grpc.aio.server()
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stopped = asyncio.Event()
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}") for _ in range(4)]
    callers = [asyncio.create_task(call(channel, stopped)) for channel in channels]
    for _ in range(200):
        child = await asyncio.create_subprocess_exec("/bin/true")
        assert await child.wait() == 0
    stopped.set()
    await asyncio.gather(*callers)
    await server.stop(0)

import uvloop
uvloop.run(main())
"""


def test_no_fork_handler_of_grpc_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BUSY_PROCESS],
        env={"PATH": os.defpath, "GRPC_VERBOSITY": "INFO"},
        cwd=SERVICES_DIR.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "fork" in done.stderr) == (0, False), done.stderr
