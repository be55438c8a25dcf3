"""Wiring of signer: `python -m services.signer [migrate]`."""

import asyncio
import sys

from protos.wallet.v1 import signer_pb2_grpc
from protos.wallet.v1.evidence_pb2_grpc import EvidenceStub
from protos.wallet.v1.keys_pb2_grpc import KeysStub
from services.runtime.channel import PeerChannel, as_channel
from services.runtime.db import Database
from services.runtime.evidence_log import APPENDING
from services.runtime.migrations import migrate
from services.runtime.server import GrpcServer, run_service, wait_for_stop
from services.runtime.settings import DatabaseSettings
from services.signer.metrics import observe_signatures
from services.signer.service import SignerService
from services.signer.settings import SignerSettings
from services.signer.telemetry import SIGNATURE_ROOTS

SERVICE = "signer"


async def serve(settings: SignerSettings) -> None:
    database = Database(settings)
    appending, reading = PeerChannel("evidence", settings, APPENDING), PeerChannel("evidence", settings)
    keys = PeerChannel("keys", settings)
    try:
        stubs = EvidenceStub(as_channel(appending)), EvidenceStub(as_channel(reading)), KeysStub(as_channel(keys))
        async with SignerService(settings, database, *stubs) as service:
            observe_signatures()
            server = GrpcServer(SERVICE, settings, ["wallet.v1.Signer"])
            signer_pb2_grpc.add_SignerServicer_to_server(service.servicer, server.grpc)
            async with server:
                await wait_for_stop()
    finally:
        await asyncio.gather(appending.close(), reading.close(), keys.close(), database.close())


def main() -> None:
    if sys.argv[1:] == ["migrate"]:
        asyncio.run(migrate(SERVICE, DatabaseSettings()))
        return
    settings = SignerSettings()
    run_service(SERVICE, settings, lambda: serve(settings), SIGNATURE_ROOTS)


if __name__ == "__main__":
    main()
