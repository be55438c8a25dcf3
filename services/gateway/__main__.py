"""`python -m services.gateway` serves; `… migrate` brings its schema up; `… token` makes and revokes API tokens."""

from __future__ import annotations

import asyncio
import logging
import sys

from services.gateway.app import create_app
from services.gateway.gateway import Gateway
from services.gateway.http_server import serve_http
from services.gateway.peers import open_peers
from services.gateway.personal import PersonalVault
from services.gateway.settings import GatewaySettings
from services.gateway.telemetry import SIGNATURE_ROOTS
from services.gateway.token_command import run_token_command, token_parser
from services.runtime.db import Database
from services.runtime.migrations import migrate
from services.runtime.server import run_service, wait_for_stop
from services.runtime.settings import DatabaseSettings

_log = logging.getLogger(__name__)


async def serve(settings: GatewaySettings) -> None:
    database = Database(settings)
    peers = open_peers(settings)
    gateway = Gateway(database, peers, PersonalVault.open(settings.gateway_encryption_key_file), settings)
    app = create_app(gateway, settings.docs_assets_dir, settings.public_scheme)
    gateway.observe()
    working = asyncio.create_task(gateway.run())
    try:
        async with serve_http(app, settings.http_host, settings.http_port, settings.shutdown_grace_s) as port:
            _log.info("serving", extra={"port": port})
            # A gateway whose saga ended by a defect must not go on accepting.
            await wait_for_stop(working)
            gateway.changes.stop()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await peers.close()
        await database.close()


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["migrate"]:
        asyncio.run(migrate("gateway", DatabaseSettings()))
    elif arguments[:1] == ["token"]:
        parsed = token_parser().parse_args(arguments[1:])
        return asyncio.run(run_token_command(parsed, DatabaseSettings()))
    else:
        settings = GatewaySettings()
        run_service("gateway", settings, lambda: serve(settings), SIGNATURE_ROOTS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
