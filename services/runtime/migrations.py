"""Bring one service's schema to its newest revision, as its owner role, under an advisory lock.

`python -m services.runtime.migrations SERVICE`. Revisions live in `services/<service>/migrations`, one history each;
the schema `<service>` and the roles `<service>` and `<service>_owner` exist before.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from services.runtime.db import database_url
from services.runtime.settings import SERVICES_DIR, DatabaseSettings


async def migrate(service: str, settings: DatabaseSettings) -> None:
    """Upgrade to the newest revision. Safe to run from several processes at once: one does the work, the rest wait."""
    url = database_url(settings, settings.database_owner_password_file, role=f"{service}_owner")
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": zlib.crc32(service.encode())})
            await connection.execute(text(f'SET search_path TO "{service}"'))
            await connection.commit()
            await connection.run_sync(_upgrade, service)
            await connection.commit()
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, service: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "alembic"))
    config.set_main_option("version_locations", str(SERVICES_DIR / service / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["schema"] = service
    command.upgrade(config, "head")


if __name__ == "__main__":
    asyncio.run(migrate(sys.argv[1], DatabaseSettings()))
