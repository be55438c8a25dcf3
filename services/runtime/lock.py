"""A lease on a name in Redis. It keeps contenders apart and is never what makes a write safe: PostgreSQL is."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from weakref import WeakValueDictionary

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.runtime import fault_points

# Delete only our own lease: it may have ended and be somebody else's by now.
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"

# A Redis that failed is not asked again for so long: not every caller waits for one that does not answer.
_REST_S = 5.0
# A release that is not answered is given up: the lease ends by itself.
_RELEASE_S = 0.5


class LeaseLock:
    """Leases of at most `lease_s` seconds, waited for up to `wait_s` seconds.

    Callers of one process queue for a name among themselves, with Redis and without.
    """

    def __init__(self, redis: Redis, lease_s: float = 5.0, wait_s: float = 5.0) -> None:
        # A second attempt finds a Redis that was restarted; the client's own back-off would only delay going without.
        redis.set_retry(Retry(NoBackoff(), 1))
        self._redis = redis
        self._lease_ms = int(lease_s * 1000)
        self._wait_s = wait_s
        self._resting_until = 0.0
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[bool]:
        """Yield True while holding the lease; False when Redis cannot give it in time (the caller goes on without)."""
        async with self._turns.setdefault(name, asyncio.Lock()):
            owner = secrets.token_hex(16)
            fault_points.before("lock")
            held = await self._acquire(name, owner)
            fault_points.after("lock")
            try:
                yield held
            finally:
                if held:
                    await self._release(name, owner)

    async def available(self) -> bool:
        """Whether Redis answers."""
        try:
            async with asyncio.timeout(self._wait_s):
                return bool(await self._redis.ping())
        except (RedisError, OSError):
            return False

    async def _acquire(self, name: str, owner: str) -> bool:
        if time.monotonic() < self._resting_until:
            return False
        pause_s, answered = 0.002, False
        try:
            async with asyncio.timeout(self._wait_s):
                while not await self._redis.set(name, owner, nx=True, px=self._lease_ms):
                    answered = True
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, 0.05)
                return True
        except (RedisError, OSError) as error:
            # Answered, and the time over: somebody else holds it, and Redis is well.
            if not (answered and isinstance(error, TimeoutError)):
                await self._rest()
            return False

    async def _release(self, name: str, owner: str) -> None:
        try:
            async with asyncio.timeout(_RELEASE_S):
                await self._redis.eval(_RELEASE, 1, name, owner)
        except (RedisError, OSError):
            await self._rest()

    async def _rest(self) -> None:
        self._resting_until = time.monotonic() + _REST_S
        # The next one may have to connect elsewhere: to the server that took over.
        with suppress(RedisError, OSError):
            await self._redis.connection_pool.disconnect(inuse_connections=False)
