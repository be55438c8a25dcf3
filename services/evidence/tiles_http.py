"""The public face of the log: `/checkpoint` and `/tile/…` over HTTP, as C2SP tlog-tiles writes it."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.typedefs import Handler

from services.core.errors import Reason, WalletError
from services.core.tiles import Tile
from services.evidence.checkpoints import CheckpointCutter
from services.evidence.settings import EvidenceSettings
from services.evidence.tiles import TileReader
from services.runtime.settings import read_secret

_FRESH = {"Cache-Control": "no-cache"}


def tiles_application(tiles: TileReader, checkpoints: CheckpointCutter, token: str | None) -> web.Application:
    """The HTTP application; with `token`, every request bears it."""
    # A partial tile is immutable too: its path names its width. What needs a token is not for shared caches.
    immutable = {"Cache-Control": f"{'private' if token else 'public'}, max-age=31536000, immutable"}

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        presented = request.headers.get("Authorization", "")
        if token is not None and not hmac.compare_digest(presented.encode(), f"Bearer {token}".encode()):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        try:
            return await handler(request)
        except WalletError as error:
            if error.reason is Reason.NOT_FOUND:
                raise web.HTTPNotFound(text=error.message) from None
            raise web.HTTPServiceUnavailable(text=error.reason.meaning) from None

    async def checkpoint(_: web.Request) -> web.Response:
        newest = checkpoints.newest
        if newest is None:
            raise WalletError(Reason.NOT_FOUND, "no checkpoint has been cut yet")
        return web.Response(body=newest.note.encode(), content_type="text/plain", charset="utf-8", headers=_FRESH)

    async def tile(request: web.Request) -> web.Response:
        asked = Tile.from_path(request.rel_url.raw_path.removeprefix("/"))
        body = await (tiles.entries(asked) if asked.level is None else tiles.hashes(asked))
        return web.Response(body=body, content_type="application/octet-stream", headers=immutable)

    application = web.Application(middlewares=[guard])
    application.router.add_get("/checkpoint", checkpoint)
    application.router.add_get("/tile/{path:.+}", tile)
    return application


@asynccontextmanager
async def serve_tiles(
    settings: EvidenceSettings, tiles: TileReader, checkpoints: CheckpointCutter
) -> AsyncIterator[None]:
    """Serve on `tiles_listen`, if that is set, while the block runs."""
    if not settings.tiles_listen:
        yield
        return
    token = read_secret(settings.tiles_token_file) if settings.tiles_token_file else None
    runner = web.AppRunner(tiles_application(tiles, checkpoints, token), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        host, _, port = settings.tiles_listen.rpartition(":")
        await web.TCPSite(runner, host, int(port)).start()
        yield
    finally:
        await runner.cleanup()
