"""`GET /metrics` of a process, in plain HTTP: for loopback or a pod's own network."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from services.runtime.metric_export import ProcessMetrics
from services.runtime.openmetrics import OPENMETRICS, PROMETHEUS

_log = logging.getLogger(__name__)


@asynccontextmanager
async def serve_metrics(listen: str, metrics: ProcessMetrics) -> AsyncIterator[None]:
    """Serve on `HOST:PORT` while the block runs; port 0 takes a free one, which the log tells."""

    async def scrape(request: web.Request) -> web.Response:
        # Prometheus names it first where it can read it.
        openmetrics = "application/openmetrics-text" in request.headers.get("Accept", "")
        text = metrics.scrape(openmetrics=openmetrics)
        return web.Response(body=text.encode(), headers={"Content-Type": OPENMETRICS if openmetrics else PROMETHEUS})

    application = web.Application()
    application.router.add_get("/metrics", scrape)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        host, _, port = listen.rpartition(":")
        await web.TCPSite(runner, host.strip("[]"), int(port)).start()
        _log.info("metrics are served", extra={"port": runner.addresses[0][1]})
        yield
    finally:
        await runner.cleanup()
