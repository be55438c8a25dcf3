"""`python -m services.txbuilder [migrate]`: wiring only."""

from __future__ import annotations

import asyncio
import sys

from redis.asyncio import Redis

from protos.wallet.v1 import txbuilder_pb2, txbuilder_pb2_grpc
from services.core.account_ids import AccountIds
from services.runtime.db import Database
from services.runtime.lock import LeaseLock
from services.runtime.migrations import migrate
from services.runtime.nodes import Nodes
from services.runtime.server import GrpcServer, run_service, wait_for_stop
from services.runtime.settings import read_secret
from services.txbuilder.building import Builder
from services.txbuilder.chain import ChainReader
from services.txbuilder.gap_store import GapStore
from services.txbuilder.gaps import GapSearch
from services.txbuilder.replacement_store import ReplacementStore
from services.txbuilder.replacing import Replacer
from services.txbuilder.servicer import TxBuilderServicer
from services.txbuilder.settings import TxBuilderSettings
from services.txbuilder.store import Store

_SERVICE_NAME = txbuilder_pb2.DESCRIPTOR.services_by_name["TxBuilder"].full_name


async def main(settings: TxBuilderSettings) -> None:
    database = Database(settings)
    store = Store(database)
    nodes = Nodes.of_settings(settings)
    chain = ChainReader(nodes, settings.default_priority_fee_wei)
    redis = Redis.from_url(read_secret(settings.redis_url_file), socket_timeout=1.0, socket_connect_timeout=1.0)
    lock = LeaseLock(redis, settings.lock_lease_s, settings.lock_wait_s)
    builder = Builder(
        store,
        chain,
        lock,
        AccountIds(settings.telemetry_hmac_key_file.read_bytes()),
        gas_margin_percent=settings.gas_margin_percent,
        fee_cap_wei=settings.fee_cap_wei,
    )
    server = GrpcServer("txbuilder", settings, [_SERVICE_NAME])
    replacer = Replacer(store, ReplacementStore(database), chain, fee_cap_wei=settings.fee_cap_wei)
    servicer = TxBuilderServicer(builder, replacer, GapSearch(GapStore(database), chain), chain, store, lock)
    txbuilder_pb2_grpc.add_TxBuilderServicer_to_server(servicer, server.grpc)
    async with server:
        await wait_for_stop()
    await redis.aclose()
    await nodes.close()
    await database.close()


if __name__ == "__main__":
    txbuilder_settings = TxBuilderSettings()
    if sys.argv[1:] == ["migrate"]:
        asyncio.run(migrate("txbuilder", txbuilder_settings))
    else:
        run_service("txbuilder", txbuilder_settings, lambda: main(txbuilder_settings))
