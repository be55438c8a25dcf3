"""Wiring of tracestore: `python -m services.tracestore [migrate]`."""

import asyncio
import sys

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from protos.wallet.v1 import tracestore_pb2_grpc
from services.runtime.db import Database
from services.runtime.migrations import migrate
from services.runtime.server import GrpcServer, run_service, wait_for_stop
from services.runtime.settings import DatabaseSettings
from services.runtime.telemetry import stop_telemetry
from services.tracestore.servicer import TraceServicer, TraceStoreServicer
from services.tracestore.settings import TraceStoreSettings
from services.tracestore.store import SpanStore
from services.tracestore.writer import SpanWriter

SERVICE = "tracestore"
SERVICE_NAMES = ["wallet.v1.TraceStore", "opentelemetry.proto.collector.trace.v1.TraceService"]


async def serve(settings: TraceStoreSettings) -> None:
    database = Database(settings)
    store = SpanStore(database)
    try:
        async with SpanWriter(store.insert, settings.max_queued_spans, settings.max_queued_bytes) as writer:
            server = GrpcServer(SERVICE, settings, SERVICE_NAMES)
            trace_service_pb2_grpc.add_TraceServiceServicer_to_server(TraceServicer(writer), server.grpc)  # type: ignore[no-untyped-call]
            tracestore_pb2_grpc.add_TraceStoreServicer_to_server(TraceStoreServicer(store), server.grpc)
            async with server:
                await wait_for_stop()
                # Our own spans come here too: they are sent while there is still somebody to take them.
                await asyncio.to_thread(stop_telemetry)
    finally:
        await database.close()


def main() -> None:
    if sys.argv[1:] == ["migrate"]:
        asyncio.run(migrate(SERVICE, DatabaseSettings()))
        return
    settings = TraceStoreSettings()
    run_service(SERVICE, settings, lambda: serve(settings))


if __name__ == "__main__":
    main()
