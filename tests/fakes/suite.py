"""All peers of the gateway, faked, behind real gRPC and mTLS."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpc import aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from protos.wallet.v1 import (
    broadcaster_pb2_grpc,
    evidence_pb2_grpc,
    keys_pb2_grpc,
    signer_pb2_grpc,
    tracestore_pb2_grpc,
    txbuilder_pb2_grpc,
)
from services.runtime.evidence_log import APPENDING
from services.runtime.server import GrpcServer
from services.runtime.settings import ServiceSettings
from tests.fakes.broadcaster import FakeBroadcaster
from tests.fakes.keys import FakeKeys
from tests.fakes.links import FakeLinks
from tests.fakes.signer import FakeSigner
from tests.fakes.tracestore import FakeTraceStore
from tests.fakes.txbuilder import FakeTxBuilder

_ADD: dict[str, tuple[Callable[[Any, aio.Server], None], ...]] = {
    "keys": (keys_pb2_grpc.add_KeysServicer_to_server,),
    "txbuilder": (txbuilder_pb2_grpc.add_TxBuilderServicer_to_server,),
    "signer": (signer_pb2_grpc.add_SignerServicer_to_server,),
    "broadcaster": (broadcaster_pb2_grpc.add_BroadcasterServicer_to_server,),
    "evidence": (evidence_pb2_grpc.add_EvidenceServicer_to_server,),
    "tracestore": (
        tracestore_pb2_grpc.add_TraceStoreServicer_to_server,
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server,
    ),
}


@dataclass
class FakeSuite:
    """The peers, each a gRPC server with its own certificate."""

    keys: FakeKeys = field(default_factory=FakeKeys)
    txbuilder: FakeTxBuilder = field(default_factory=FakeTxBuilder)
    signer: FakeSigner = field(default_factory=FakeSigner)
    broadcaster: FakeBroadcaster = field(default_factory=FakeBroadcaster)
    evidence: FakeLinks = field(default_factory=FakeLinks)
    tracestore: FakeTraceStore = field(default_factory=FakeTraceStore)
    addresses: dict[str, str] = field(default_factory=dict)

    @asynccontextmanager
    async def serve(self, tls_dir: Callable[[str], Path]) -> AsyncIterator[FakeSuite]:
        async with contextlib.AsyncExitStack() as stack:
            for name, added in _ADD.items():
                settings = ServiceSettings(listen="127.0.0.1:0", tls_dir=tls_dir(name), shutdown_grace_s=0.1)
                server = GrpcServer(name, settings, [])
                for add in added:
                    add(getattr(self, name), server.grpc)
                await stack.enter_async_context(server)
                server.report(APPENDING, serving=name == "evidence")
                self.addresses[name] = f"127.0.0.1:{server.port}"
            yield self
