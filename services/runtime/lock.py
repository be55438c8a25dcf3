"""A lease on a name in Redis. It keeps contenders apart and is never what makes a write safe: PostgreSQL is."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

# Delete only our own lease: it may have ended and be somebody else's by now.
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"


class LeaseLock:
    """Leases of at most `lease_s` seconds, waited for up to `wait_s` seconds."""

    def __init__(self, redis: Redis, lease_s: float = 5.0, wait_s: float = 5.0) -> None:
        # A second attempt finds a Redis that was restarted; the client's own back-off would only delay going without.
        redis.set_retry(Retry(NoBackoff(), 1))
        self._redis = redis
        self._lease_ms = int(lease_s * 1000)
        self._wait_s = wait_s

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[bool]:
        """Yield True while holding the lease; False when Redis cannot give it in time (the caller goes on without)."""
        owner = secrets.token_hex(16)
        held = await self._acquire(name, owner)
        try:
            yield held
        finally:
            if held:
                await self._release(name, owner)

    async def available(self) -> bool:
        """Whether Redis answers."""
        try:
            return bool(await self._redis.ping())
        except (RedisError, OSError):
            return False

    async def _acquire(self, name: str, owner: str) -> bool:
        pause_s = 0.002
        try:
            async with asyncio.timeout(self._wait_s):
                while not await self._redis.set(name, owner, nx=True, px=self._lease_ms):
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, 0.05)
                return True
        except (RedisError, OSError, TimeoutError):
            return False

    async def _release(self, name: str, owner: str) -> None:
        try:
            await self._redis.eval(_RELEASE, 1, name, owner)
        except (RedisError, OSError):
            # The lease ends by itself.
            return
