"""The public face of the log: `/checkpoint` and `/tile/…` over HTTP, as C2SP tlog-tiles writes it."""

from __future__ import annotations

import hmac

from aiohttp import web
from aiohttp.typedefs import Handler

from services.core.errors import Reason, WalletError
from services.core.tiles import Tile
from services.evidence.checkpoints import CheckpointCutter
from services.evidence.tiles import TileReader

_IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}
_FRESH = {"Cache-Control": "no-cache"}


def tiles_application(tiles: TileReader, checkpoints: CheckpointCutter, token: str | None) -> web.Application:
    """The HTTP application; with `token`, every request bears it."""

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
        asked = Tile.from_path(request.path.removeprefix("/"))
        body = await (tiles.entries(asked) if asked.level is None else tiles.hashes(asked))
        return web.Response(body=body, content_type="application/octet-stream", headers=_IMMUTABLE)

    application = web.Application(middlewares=[guard])
    application.router.add_get("/checkpoint", checkpoint)
    application.router.add_get("/tile/{path:.+}", tile)
    return application
