"""The broadcaster's answers for signed transactions, by the single call or the batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from protos.wallet.v1 import broadcaster_pb2
from services.gateway.asking import BATCH_TIMEOUT_S, SINGLE_TIMEOUT_S, Round, ask, item_result
from services.gateway.peers import Peers
from services.gateway.transfer import Transfer

_log = logging.getLogger(__name__)


class Signed(NamedTuple):
    transfer: Transfer
    raw_tx: bytes


class Submissions:
    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def ask(self, found: Round, items: Sequence[Signed]) -> list[tuple[Transfer, Any]]:
        """What broadcaster holds by now; everything else goes to `found.postponed`.

        A signature exists: whatever the broadcaster says, it is handed over again and never FAILED. Else whoever holds
        the old bytes could send them after a second payment.
        """

        async def single(item: Signed) -> Any:
            return await self._peers.broadcaster.SubmitTransaction(_request(item), timeout=SINGLE_TIMEOUT_S)

        async def batch(some: Sequence[Signed]) -> list[Any]:
            request = broadcaster_pb2.SubmitTransactionsRequest(items=[_request(item) for item in some])
            reply = await self._peers.broadcaster.SubmitTransactions(request, timeout=BATCH_TIMEOUT_S)
            return [item_result(result, "submission") for result in reply.results]

        submitting = Round()
        answered = submitting.sort([item.transfer for item in items], await ask(items, single, batch))
        for transfer, error in submitting.failures:
            _log.error(
                "broadcaster refuses a signed transfer", extra={"link_id": transfer.transfer_id, "error": str(error)}
            )
        found.postponed += submitting.postponed + submitting.failures
        return answered


def _request(item: Signed) -> broadcaster_pb2.SubmitTransactionRequest:
    transfer = item.transfer
    return broadcaster_pb2.SubmitTransactionRequest(
        transfer_id=transfer.transfer_id,
        chain_id=transfer.chain_id,
        from_address=transfer.from_address,
        nonce=transfer.nonce or 0,
        raw_tx=item.raw_tx,
        traceparent=transfer.traceparent,
    )
