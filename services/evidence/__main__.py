"""`python -m services.evidence [migrate]`: wiring only."""

from __future__ import annotations

import asyncio
import sys

from protos.wallet.v1 import evidence_pb2, evidence_pb2_grpc
from services.core.notes import NoteKey
from services.evidence.bundles import BundleMaker
from services.evidence.checkpoint_file import CheckpointFile
from services.evidence.checkpoints import CheckpointCutter
from services.evidence.sequencer import Sequencer
from services.evidence.servicer import EvidenceServicer
from services.evidence.settings import EvidenceSettings
from services.evidence.store import Store
from services.evidence.tiles import TileReader
from services.evidence.tiles_http import serve_tiles
from services.runtime.db import Database
from services.runtime.migrations import migrate
from services.runtime.server import GrpcServer, run_service, wait_for_stop
from services.runtime.token import TokenSession

CHECKPOINT_KEY = "checkpoint"
_SERVICE_NAME = evidence_pb2.DESCRIPTOR.services_by_name["Evidence"].full_name


async def main(settings: EvidenceSettings) -> None:
    token = TokenSession(settings)
    public_key = await asyncio.to_thread(token.ed25519_public_key, CHECKPOINT_KEY)
    key = NoteKey(settings.evidence_origin, public_key)
    # Readers, the public among them, have connections of their own: they cannot keep the writer from its.
    database, read_database = (Database(settings.with_pool_size(size)) for size in (2, 3))
    store, read_store = Store(database), Store(read_database)
    tiles = TileReader(read_store)
    sequencer = Sequencer(
        store,
        nodes_required=settings.nodes_required,
        lease_s=settings.lease_s,
        max_waiting_entries=settings.max_waiting_entries,
    )
    checkpoints = CheckpointCutter(
        store,
        TileReader(store),
        sequencer,
        key,
        lambda text: asyncio.to_thread(token.sign_ed25519, CHECKPOINT_KEY, text),
        CheckpointFile(settings.checkpoint_file, key),
        settings.checkpoint_interval_s,
    )
    server = GrpcServer("evidence", settings, [_SERVICE_NAME])
    servicer = EvidenceServicer(sequencer, BundleMaker(read_store, tiles, checkpoints), checkpoints, key)
    evidence_pb2_grpc.add_EvidenceServicer_to_server(servicer, server.grpc)
    tasks = [asyncio.create_task(sequencer.run(checkpoints.compare)), asyncio.create_task(checkpoints.run())]
    async with serve_tiles(settings, tiles, checkpoints), server:
        await wait_for_stop(*tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(database.close(), read_database.close())


if __name__ == "__main__":
    evidence_settings = EvidenceSettings()
    if sys.argv[1:] == ["migrate"]:
        asyncio.run(migrate("evidence", evidence_settings))
    else:
        run_service("evidence", evidence_settings, lambda: main(evidence_settings))
