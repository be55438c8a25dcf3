"""Three named nodes before one chain: bytes pass through unchanged, and each answer says which node gave it.

This is where tests inject what real nodes do wrong. The control endpoint, on a port of its own:
`GET /nodes/{name}` (requests seen, fault in force) · `PUT /nodes/{name}/fault` (a `Fault` as JSON) · `DELETE` the same.

    python -m tools.stack.node_proxy CONFIGURATION.json
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

_MAX_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Fault:
    """What a node does wrong, to requests that hold one of `methods` (to all, when empty)."""

    methods: tuple[str, ...] = ()
    # How many requests it applies to; None = until removed.
    times: int | None = None
    delay_s: float = 0.0
    # Close the connection: "request" before the chain saw it, "response" after (the outcome stays unknown).
    drop: str | None = None
    # Answer this HTTP status, with `body`, and do not ask the chain.
    status: int | None = None
    # Answer this text instead of the chain's answer, which is not asked.
    body: str | None = None
    # Method → the result to answer in place of the chain's.
    results: dict[str, Any] = field(default_factory=dict)
    # Pass the request on twice; the second answer counts, as from a proxy that tries again.
    duplicate: bool = False
    # Say of the newest block what is asked of "safe" and "finalized".
    hasty: bool = False

    @classmethod
    def from_json(cls, document: object) -> Fault:
        """Raises TypeError or ValueError when a member is unknown or of the wrong kind."""
        if not isinstance(document, dict):
            raise ValueError("a fault is an object")
        fault = cls(**{**document, "methods": tuple(document.get("methods", ()))})
        if fault.drop not in (None, "request", "response"):
            raise ValueError("drop is 'request' or 'response'")
        return fault


class Node:
    """One named node."""

    def __init__(self, name: str, upstream: str, session: aiohttp.ClientSession) -> None:
        self.name = name
        self.fault: Fault | None = None
        self.requests = 0
        self._upstream = upstream
        self._session = session

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests += 1
        fault = self._take_fault(_methods(body))
        if fault is not None:
            await asyncio.sleep(fault.delay_s)
            if fault.drop == "request":
                return _drop(request)
            if fault.status is not None or fault.body is not None:
                return self._answer(fault.status or 200, (fault.body or "").encode(), "application/json")
        try:
            if fault is not None and fault.hasty:
                body = body.replace(b'"finalized"', b'"latest"').replace(b'"safe"', b'"latest"')
            if fault is not None and fault.duplicate:
                await self._ask(body, request.headers.get("content-type", ""))
            status, answer, content_type = await self._ask(body, request.headers.get("content-type", ""))
        except (aiohttp.ClientError, OSError, TimeoutError):
            return self._answer(502, b"", "text/plain")
        if fault is not None:
            if fault.drop == "response":
                return _drop(request)
            answer = _replace_results(body, answer, fault.results)
        return self._answer(status, answer, content_type)

    async def _ask(self, body: bytes, content_type: str) -> tuple[int, bytes, str]:
        # The node's exact bytes, not compressed.
        headers = {"content-type": content_type or "application/json", "accept-encoding": "identity"}
        async with self._session.post(self._upstream, data=body, headers=headers) as response:
            return response.status, await response.read(), response.headers.get("content-type", "application/json")

    def _answer(self, status: int, body: bytes, content_type: str) -> web.Response:
        return web.Response(status=status, body=body, headers={"content-type": content_type, "x-node-id": self.name})

    def _take_fault(self, methods: frozenset[str]) -> Fault | None:
        fault = self.fault
        if fault is None or (fault.methods and not methods.intersection(fault.methods)):
            return None
        if fault.times is not None:
            remaining = fault.times - 1
            self.fault = Fault(**{**asdict(fault), "times": remaining}) if remaining > 0 else None
        return fault


def _drop(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _calls(body: bytes) -> list[dict[str, Any]]:
    try:
        document = json.loads(body)
    except ValueError:
        return []
    return [call for call in (document if isinstance(document, list) else [document]) if isinstance(call, dict)]


def _methods(body: bytes) -> frozenset[str]:
    return frozenset(str(call.get("method")) for call in _calls(body))


def _replace_results(request: bytes, answer: bytes, results: dict[str, Any]) -> bytes:
    """The answer with the results of the named methods replaced; byte for byte the same when none is named."""
    lies = {
        json.dumps(call.get("id")): results[call["method"]] for call in _calls(request) if call.get("method") in results
    }
    if not lies:
        return answer
    document = json.loads(answer)
    for item in document if isinstance(document, list) else [document]:
        if json.dumps(item.get("id")) in lies:
            item.pop("error", None)
            item["result"] = lies[json.dumps(item.get("id"))]
    return json.dumps(document).encode()


class Control:
    """The endpoint through which tests inject faults."""

    def __init__(self, nodes: dict[str, Node]) -> None:
        self._nodes = nodes
        self.application = web.Application()
        self.application.router.add_get("/nodes/{name}", self._show)
        self.application.router.add_put("/nodes/{name}/fault", self._set)
        self.application.router.add_delete("/nodes/{name}/fault", self._clear)

    def _node(self, request: web.Request) -> Node:
        try:
            return self._nodes[request.match_info["name"]]
        except KeyError:
            raise web.HTTPNotFound from None

    async def _show(self, request: web.Request) -> web.Response:
        node = self._node(request)
        fault = asdict(node.fault) if node.fault is not None else None
        return web.json_response({"name": node.name, "requests": node.requests, "fault": fault})

    async def _set(self, request: web.Request) -> web.Response:
        node = self._node(request)
        try:
            node.fault = Fault.from_json(await request.json())
        except (TypeError, ValueError) as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        return await self._show(request)

    async def _clear(self, request: web.Request) -> web.Response:
        self._node(request).fault = None
        return await self._show(request)


async def serve(configuration: dict[str, Any]) -> None:
    """`configuration`: {"upstream": URL, "control_port": n, "ports": {"node-a": n, …}}."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=60.0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session:
        nodes = {name: Node(name, configuration["upstream"], session) for name in configuration["ports"]}
        runners = [await _listen(Control(nodes).application, configuration["control_port"])]
        for name, port in configuration["ports"].items():
            application = web.Application(client_max_size=_MAX_BODY_BYTES)
            application.router.add_post("/", nodes[name].handle)
            runners.append(await _listen(application, port))
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        for runner in runners:
            await runner.cleanup()


async def _listen(application: web.Application, port: int) -> web.AppRunner:
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, shutdown_timeout=1.0).start()
    return runner


if __name__ == "__main__":
    uvloop.run(serve(json.loads(Path(sys.argv[1]).read_text())))
