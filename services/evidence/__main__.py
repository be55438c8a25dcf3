"""`python -m services.evidence [migrate | adopt]`: wiring only."""

from __future__ import annotations

import asyncio
import sys

from protos.wallet.v1 import evidence_pb2, evidence_pb2_grpc
from services.evidence.adopting import adopt
from services.evidence.announcing import announce
from services.evidence.bundles import BundleMaker
from services.evidence.checkpoint_file import CheckpointFile
from services.evidence.checkpoint_key import settle_checkpoint_key
from services.evidence.checkpoints import CheckpointCutter
from services.evidence.holder import Holder
from services.evidence.log_clock import LogClock
from services.evidence.memory import Memory
from services.evidence.sequencer import Sequencer
from services.evidence.servicer import EvidenceServicer
from services.evidence.settings import EvidenceSettings
from services.evidence.store import Store
from services.evidence.tiles import TileReader
from services.evidence.tiles_http import serve_tiles
from services.runtime.channel import PeerChannel, as_channel
from services.runtime.database_clock import DatabaseClock
from services.runtime.db import Database
from services.runtime.evidence_log import APPENDING
from services.runtime.metric_names import WALLET_EVIDENCE_BLOCKED, WALLET_EVIDENCE_QUEUE_DEPTH
from services.runtime.metrics import observe
from services.runtime.migrations import migrate
from services.runtime.server import GrpcServer, run_service, wait_for_stop
from services.runtime.token import TokenSession

_SERVICE_NAME = evidence_pb2.DESCRIPTOR.services_by_name["Evidence"].full_name


async def main(settings: EvidenceSettings) -> None:
    # Readers, the public among them, have connections of their own: they cannot keep the writer from its.
    database, read_database = (Database(settings.with_pool_size(size)) for size in (2, 3))
    store, read_store = Store(database), Store(read_database)
    key = await settle_checkpoint_key(database, TokenSession(settings), settings.evidence_origin)
    tiles, own_tiles = TileReader(read_store), TileReader(store)
    sequencer = Sequencer(
        store,
        nodes_required=settings.nodes_required,
        lease_s=settings.lease_s,
        max_waiting_entries=settings.max_waiting_entries,
        clock=LogClock(DatabaseClock(database)).now,
    )
    peer = PeerChannel("evidence", settings, APPENDING)
    holder = Holder(evidence_pb2_grpc.EvidenceStub(as_channel(peer)))
    memory = Memory(store, own_tiles, key, CheckpointFile(settings.checkpoint_file, key.note_key), holder)
    checkpoints = CheckpointCutter(store, own_tiles, sequencer, key, memory, settings.checkpoint_interval_s)
    server = GrpcServer("evidence", settings, [_SERVICE_NAME])
    servicer = EvidenceServicer(sequencer, BundleMaker(read_store, tiles, checkpoints), checkpoints, key.note_key)
    evidence_pb2_grpc.add_EvidenceServicer_to_server(servicer, server.grpc)
    observe(WALLET_EVIDENCE_QUEUE_DEPTH, lambda: [(sequencer.waiting_entries, None)])
    observe(WALLET_EVIDENCE_BLOCKED, lambda: [(int(sequencer.refusal is not None), None)])
    tasks = [
        asyncio.create_task(worker)
        for worker in (sequencer.run(memory), checkpoints.run(), announce(sequencer, server))
    ]
    async with serve_tiles(settings, tiles, checkpoints), server:
        await wait_for_stop(*tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(peer.close(), database.close(), read_database.close())


if __name__ == "__main__":
    evidence_settings = EvidenceSettings()
    if sys.argv[1:] == ["migrate"]:
        asyncio.run(migrate("evidence", evidence_settings))
    elif sys.argv[1:] == ["adopt"]:
        asyncio.run(adopt(evidence_settings))
    else:
        run_service("evidence", evidence_settings, lambda: main(evidence_settings))
