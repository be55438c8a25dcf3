"""The builder is not believed: what would be signed is compared with what was asked for."""

from __future__ import annotations

import logging

from protos.wallet.v1 import txbuilder_pb2
from services.core.amounts import format_chain_id
from services.core.errors import Reason, WalletError
from services.core.transactions import decode_unsigned
from services.gateway.transfer import Transfer

_log = logging.getLogger(__name__)


def checked_as_asked(
    transfer: Transfer, built: txbuilder_pb2.BuiltTransaction, nonce: int
) -> txbuilder_pb2.BuiltTransaction | WalletError:
    """`built`, or TERMS_MISMATCH in its place."""
    try:
        check_as_asked(transfer, built.unsigned_tx, nonce)
    except WalletError as error:
        _log.error("txbuilder built something else", extra={"link_id": transfer.transfer_id, "error": str(error)})
        return error
    return built


def check_as_asked(transfer: Transfer, unsigned_tx: bytes, nonce: int) -> None:
    """Raises WalletError TERMS_MISMATCH naming the first field of `unsigned_tx` that is not the transfer's."""
    try:
        tx = decode_unsigned(unsigned_tx)
    except WalletError as error:
        raise _mismatch("unsigned_tx") from error
    asked = {
        "chain_id": (format_chain_id(tx.chain_id), transfer.chain_id),
        "to": (bytes(tx.to or b""), transfer.to_address),
        "value_wei": (str(tx.value_wei), transfer.value_wei),
        "data": (tx.data, transfer.data),
        "nonce": (tx.nonce, nonce),
    }
    for field, (built, wanted) in asked.items():
        if built != wanted:
            raise _mismatch(field)


def _mismatch(field: str) -> WalletError:
    return WalletError(
        Reason.TERMS_MISMATCH, Reason.TERMS_MISMATCH.meaning, field=field, rule="is what the transfer asks for"
    )
