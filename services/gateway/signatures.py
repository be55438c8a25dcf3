"""The signer's answers for transfers, by the single call or the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from protos.wallet.v1 import signer_pb2
from protos.wallet.v1.common_pb2 import Requester
from services.core.errors import WalletError
from services.gateway.asking import BATCH_TIMEOUT_S, SINGLE_TIMEOUT_S, ask, item_result
from services.gateway.peers import Peers
from services.gateway.personal import Client, PersonalVault, requester
from services.gateway.transfer import Transfer

_NO_CLIENT = Client("", "", "")


class Unsigned(NamedTuple):
    transfer: Transfer
    unsigned_tx: bytes


class Signatures:
    def __init__(self, peers: Peers, vault: PersonalVault) -> None:
        self._peers = peers
        self._vault = vault

    async def ask(self, items: Sequence[Unsigned]) -> list[signer_pb2.SignedTransaction | WalletError]:
        async def single(item: Unsigned) -> Any:
            return await self._peers.signer.SignTransaction(self._request(item), timeout=SINGLE_TIMEOUT_S)

        async def batch(some: Sequence[Unsigned]) -> list[Any]:
            request = signer_pb2.SignTransactionsRequest(items=[self._request(item) for item in some])
            reply = await self._peers.signer.SignTransactions(request, timeout=BATCH_TIMEOUT_S)
            return [item_result(result, "signed") for result in reply.results]

        return await ask(items, single, batch)

    def client(self, transfer: Transfer) -> Client:
        """Who asked for it; nobody once the log has it, and nobody asks for the repair of a gap."""
        if transfer.personal is None:
            return _NO_CLIENT
        return self._vault.unseal(transfer.transfer_id, transfer.personal)

    def requester(self, transfer: Transfer) -> Requester:
        return requester(self.client(transfer), transfer.created_at)

    def _request(self, item: Unsigned) -> signer_pb2.SignTransactionRequest:
        transfer = item.transfer
        return signer_pb2.SignTransactionRequest(
            transfer_id=transfer.transfer_id,
            unsigned_tx=item.unsigned_tx,
            from_address=transfer.from_address,
            key=transfer.key,
            requester=self.requester(transfer),
            traceparent=transfer.traceparent,
            supersedes=transfer.supersedes,
        )
