"""A process that builds one transfer under the nonce lock, and waits in the middle of it. Source of a real pause.

Arguments: transfer id, chain URL, Redis URL in a file, database URL, file of its password. It writes `gate` when it
has the lock and the epoch, goes on when it reads a line, and writes the nonce or the reason of the refusal.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from redis.asyncio import Redis

from services.core.errors import WalletError
from services.runtime.lock import LeaseLock
from services.runtime.settings import DatabaseSettings
from tests.integration.txbuilder_bench import Gate, draft, running_bench

LEASE_S = 0.5


async def main(transfer_id: str, chain_url: str, redis_url: str, settings: DatabaseSettings) -> None:
    async with running_bench(settings, redis_url, chain_url) as bench, Redis.from_url(redis_url) as redis:
        gate = Gate(bench.nodes)
        builder = bench.builder_with(LeaseLock(redis, lease_s=LEASE_S), gate)
        building = asyncio.create_task(builder.build([draft(transfer_id)]))
        await gate.reached.wait()
        print("gate", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        gate.opened.set()
        try:
            (outcome,) = await building
            print(outcome.reason.name if isinstance(outcome, WalletError) else outcome.nonce, flush=True)
        except WalletError as error:
            print(error.reason.name, flush=True)


if __name__ == "__main__":
    transfer, chain, redis_file, database_url, password_file = sys.argv[1:]
    database = DatabaseSettings(database_url=database_url, database_password_file=Path(password_file))
    asyncio.run(main(transfer, chain, Path(redis_file).read_text(), database))
