"""Does a service serve? Asked as its peers would ask: gRPC health over mTLS, and gateway's /readyz."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.wallet.v1 import evidence_pb2, evidence_pb2_grpc
from services.runtime.mtls import channel_credentials
from tools.stack.processes import StackError

_TIMEOUT_S = 2.0


def open_channel(service: str, address: str, tls_dir: Path) -> grpc.aio.Channel:
    """A channel to `service` that presents the certificate in `tls_dir`."""
    return grpc.aio.secure_channel(
        address, channel_credentials(tls_dir), options=(("grpc.ssl_target_name_override", service),)
    )


async def serves_grpc(service: str, address: str, tls_dir: Path) -> bool:
    async with open_channel(service, address, tls_dir) as channel:
        try:
            reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


async def serves_http(url: str) -> bool:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as session,
            session.get(url) as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False


async def evidence_verifier_key(address: str, tls_dir: Path) -> str:
    """The C2SP verifier key of the log, asked of `evidence` itself.

    Raises:
        StackError: evidence does not tell.
    """
    async with open_channel("evidence", address, tls_dir) as channel:
        stub = evidence_pb2_grpc.EvidenceStub(channel)
        try:
            # Before the first entry the answer waits for the first checkpoint.
            reply = await stub.GetCheckpoint(evidence_pb2.GetCheckpointRequest(), timeout=10.0, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise StackError(f"evidence does not tell its verifier key: {error.details()}") from None
    return str(reply.verifier_key)
