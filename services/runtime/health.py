"""What of a server can be called now, by name: `grpc.health.v1`, told to whoever asks or watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
Context = grpc.aio.ServicerContext[Any, Any]


class Health:
    """A peer's channel watches a name and calls the replicas that serve it (gRFC A17).

    The library's own servicer writes to the stream by itself, past the gate, and keeps a watcher's open on a server
    that stops.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        # Set and replaced at each change.
        self._changed = asyncio.Event()
        self._stopped = False

    def report(self, name: str, serving: bool) -> None:
        if not self._stopped:
            self._statuses[name] = _SERVING if serving else _NOT_SERVING
            self._tell()

    def stop(self) -> None:
        """Nothing is served any more, and every watcher's stream ends."""
        self._statuses = dict.fromkeys(self._statuses, _NOT_SERVING)
        self._stopped = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        statuses = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._statuses.items()}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _UNKNOWN)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            # It may have changed while that was sent.
            elif self._stopped:
                return
            else:
                await changed.wait()
