"""The terms that the builder resolved, compared with what the client wrote: call data is encoded a second time here."""

from __future__ import annotations

from protos.wallet.v1 import common_pb2, keys_pb2
from services.core.abi import encode_call, erc20_transfer
from services.core.addresses import parse_address
from services.core.errors import Reason, WalletError
from services.gateway.requests import TransferRequest


def check_resolved(request: TransferRequest, account: keys_pb2.Account, terms: common_pb2.Terms) -> None:
    """Raises WalletError TERMS_MISMATCH naming the first field of `terms` that is not what was asked for."""
    to, data = _called(request)
    asked = {
        "chain_id": (terms.chain_id, account.chain_id),
        "from": (terms.from_address, account.address),
        "to": (terms.to_address, to),
        "value_wei": (terms.value_wei, request.value_wei or "0"),
        "data": (terms.data, data),
    }
    for field, (resolved, wanted) in asked.items():
        if resolved != wanted:
            raise WalletError(
                Reason.TERMS_MISMATCH, Reason.TERMS_MISMATCH.meaning, field=field, rule="is what the client wrote"
            )


def _called(request: TransferRequest) -> tuple[bytes, bytes]:
    """(address that is called, empty for a creation; call data)."""
    if request.erc20 is not None:
        receiver = parse_address(request.to, "to")
        return parse_address(request.erc20.token, "erc20.token"), erc20_transfer(receiver, int(request.erc20.amount))
    to = parse_address(request.to, "to") if request.to is not None else b""
    if request.call is not None:
        return to, encode_call(request.call.signature, request.call.arguments)
    return to, bytes.fromhex((request.data or "0x")[2:])
