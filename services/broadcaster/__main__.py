"""`python -m services.broadcaster [migrate | mend CHAIN]`: wiring only."""

from __future__ import annotations

import asyncio
import sys

from protos.wallet.v1 import broadcaster_pb2, broadcaster_pb2_grpc
from protos.wallet.v1.evidence_pb2_grpc import EvidenceStub
from services.broadcaster.evidence_log import PatientLog
from services.broadcaster.leading import ChainLeader
from services.broadcaster.mending import mend
from services.broadcaster.servicer import BroadcasterServicer, EventBell
from services.broadcaster.settings import BroadcasterSettings
from services.broadcaster.store import Store
from services.runtime.channel import PeerChannel, as_channel
from services.runtime.db import Database
from services.runtime.evidence_log import APPENDING
from services.runtime.migrations import migrate
from services.runtime.nodes import Nodes
from services.runtime.server import GrpcServer, run_service, wait_for_stop

_SERVICE_NAME = broadcaster_pb2.DESCRIPTOR.services_by_name["Broadcaster"].full_name


async def main(settings: BroadcasterSettings) -> None:
    evidence = PeerChannel("evidence", settings, APPENDING)
    database = Database(settings)
    store = Store(database)
    nodes = Nodes.of_settings(settings)
    bell = EventBell()
    log = PatientLog(EvidenceStub(as_channel(evidence)))
    leaders = {chain.chain_id: ChainLeader(settings, database, store, log, chain, bell.ring) for chain in nodes.chains}
    server = GrpcServer("broadcaster", settings, [_SERVICE_NAME])
    servicer = BroadcasterServicer(store, nodes, leaders, bell)
    broadcaster_pb2_grpc.add_BroadcasterServicer_to_server(servicer, server.grpc)
    tasks = [asyncio.create_task(leader.run()) for leader in leaders.values()]
    async with server:
        await wait_for_stop(*tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await nodes.close()
    await evidence.close()
    await database.close()


if __name__ == "__main__":
    broadcaster_settings = BroadcasterSettings()
    if sys.argv[1:] == ["migrate"]:
        asyncio.run(migrate("broadcaster", broadcaster_settings))
    elif sys.argv[1:2] == ["mend"] and len(sys.argv) == 3:
        asyncio.run(mend(broadcaster_settings, sys.argv[2]))
    else:
        run_service("broadcaster", broadcaster_settings, lambda: main(broadcaster_settings))
