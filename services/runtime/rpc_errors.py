"""`WalletError` ⇄ `google.rpc.Status` with `ErrorInfo`, so that a deep reason crosses every hop intact."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from protos.wallet.v1 import common_pb2
from services.core.errors import Reason, WalletError

DOMAIN = "goldenlink"
STATUS_METADATA_KEY = "grpc-status-details-bin"
_STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def status_code(error: WalletError) -> grpc.StatusCode:
    return _STATUS_CODES[int(error.reason.code)]


def to_status_metadata(error: WalletError) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata that carries the reason and the details. Source: google.rpc.Status, the richer error model."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason.name,
        domain=DOMAIN,
        metadata={name: str(value) for name, value in error.details.items()},
    )
    packed = any_pb2.Any()
    packed.Pack(info)
    status = status_pb2.Status(code=int(error.reason.code), message=error.message, details=[packed])
    return ((STATUS_METADATA_KEY, status.SerializeToString()),)


_REASON_OF_CODE = {
    grpc.StatusCode.UNAVAILABLE: Reason.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_EXCEEDED,
    # Not by us: that is an exception of asyncio's. A peer that stops cancels the calls that it has not begun.
    grpc.StatusCode.CANCELLED: Reason.SERVICE_UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED: Reason.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: Reason.CALLER_NOT_ALLOWED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.PAYLOAD_TOO_LARGE,
}


def from_rpc_error(error: grpc.aio.AioRpcError, peer: str) -> WalletError:
    """The reason that the peer gave, or the one that its bare status code means."""
    for key, value in cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ()):
        if key == STATUS_METADATA_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN and info.reason in Reason.__members__:
                    return WalletError(Reason[info.reason], status.message, **dict(info.metadata))
    reason = _REASON_OF_CODE.get(error.code(), Reason.INTERNAL)
    # A bare status holds transport text, which may name addresses; it stays in this process.
    return WalletError(reason, f"{peer}: {reason.meaning}", service=peer)


def to_item_error(error: WalletError) -> common_pb2.Error:
    """One item's failure inside a batch."""
    return common_pb2.Error(
        reason=error.reason.name,
        message=error.message,
        details={name: str(value) for name, value in error.details.items()},
    )


def from_item_error(error: common_pb2.Error) -> WalletError:
    reason = Reason[error.reason] if error.reason in Reason.__members__ else Reason.INTERNAL
    return WalletError(reason, error.message, **dict(error.details))
