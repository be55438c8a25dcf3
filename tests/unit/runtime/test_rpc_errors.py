"""Every reason survives the wire; what is not ours is named by its bare code."""

from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from services.core.errors import Reason, WalletError
from services.runtime.rpc_errors import from_item_error, from_rpc_error, status_code, to_item_error, to_status_metadata


def rpc_error(code: grpc.StatusCode, *trailing: tuple[str, bytes]) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(*trailing), "text of the transport: 10.0.0.1")


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_crosses(reason: Reason) -> None:
    sent = WalletError(reason, "why", field="to", index=3)
    received = from_rpc_error(rpc_error(status_code(sent), *to_status_metadata(sent)), "signer")
    assert (received.reason, received.message) == (reason, "why")
    assert received.details == {"field": "to", "index": "3"}
    item = from_item_error(to_item_error(sent))
    assert (item.reason, item.message, item.details) == (reason, "why", received.details)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_bare_code_names_the_peer_and_hides_the_transports_text(code: grpc.StatusCode) -> None:
    error = from_rpc_error(rpc_error(code), "signer")
    assert error.details == {"service": "signer"}
    assert "10.0.0.1" not in str(error)


def test_garbage_in_the_status_metadata_is_not_ours() -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, ("grpc-status-details-bin", b"\xff\xff")), "signer")
    assert error.reason is Reason.SERVICE_UNAVAILABLE
