"""Wiring of tracestore: `python -m services.tracestore [migrate]`."""

import asyncio
import sys

from protos.jaeger.storage.v2 import dependency_storage_pb2_grpc
from protos.wallet.v1 import tracestore_pb2_grpc
from services.runtime.db import Database
from services.runtime.metric_names import WALLET_TRACESTORE_QUEUE_DEPTH
from services.runtime.metrics import observe
from services.runtime.migrations import migrate
from services.runtime.server import GrpcServer, run_service, wait_for_stop
from services.runtime.settings import DatabaseSettings
from services.runtime.telemetry import stop_telemetry
from services.tracestore.days import Days
from services.tracestore.hot import HotStore
from services.tracestore.jaeger_servicer import DEPENDENCY_READER, TRACE_READER, DependencyServicer, TraceReader
from services.tracestore.search import Search
from services.tracestore.servicer import LOGS_SERVICE, TRACE_SERVICE, ExportServicer, TraceStoreServicer
from services.tracestore.settings import TraceStoreSettings
from services.tracestore.store import Store
from services.tracestore.writer import BatchWriter

SERVICE = "tracestore"
SERVICE_NAMES = ["wallet.v1.TraceStore", TRACE_SERVICE, LOGS_SERVICE, TRACE_READER, DEPENDENCY_READER]


async def serve(settings: TraceStoreSettings) -> None:
    database = Database(settings)
    days, hot = Days(database), HotStore(database)
    store = Store(database, days)
    limits = settings.max_queued_spans, settings.max_queued_bytes
    keeping = asyncio.create_task(days.keep())
    try:
        async with BatchWriter(store.insert_spans, *limits) as spans, BatchWriter(store.insert_logs, *limits) as logs:
            observe(WALLET_TRACESTORE_QUEUE_DEPTH, lambda: [(spans.waiting_rows, None)])
            server = GrpcServer(SERVICE, settings, SERVICE_NAMES)
            server.grpc.add_generic_rpc_handlers(
                [*ExportServicer(spans, logs).handlers(), TraceReader(hot, Search(hot)).handler()]
            )
            tracestore_pb2_grpc.add_TraceStoreServicer_to_server(TraceStoreServicer(hot), server.grpc)
            dependency_storage_pb2_grpc.add_DependencyReaderServicer_to_server(
                DependencyServicer(database), server.grpc
            )
            async with server:
                await wait_for_stop(keeping)
                # Our own spans come here too: they are sent while there is still somebody to take them.
                await asyncio.to_thread(stop_telemetry)
    finally:
        keeping.cancel()
        await database.close()


def main() -> None:
    if sys.argv[1:] == ["migrate"]:
        asyncio.run(migrate(SERVICE, DatabaseSettings()))
        return
    settings = TraceStoreSettings()
    run_service(SERVICE, settings, lambda: serve(settings))


if __name__ == "__main__":
    main()
