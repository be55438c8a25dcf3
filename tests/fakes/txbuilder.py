"""Nonces in memory, under the promises of the real one: idempotent by transfer id, a released nonce is used first."""

from __future__ import annotations

import heapq
from typing import Any

from protos.wallet.v1 import txbuilder_pb2, txbuilder_pb2_grpc
from protos.wallet.v1.common_pb2 import Terms
from services.core.addresses import parse_address
from services.core.errors import Reason, WalletError
from services.runtime.rpc_errors import to_item_error
from tests.fakes.script import Script

POOR_VALUE_WEI = "999999"
UNKNOWN_CHAIN = "eip155:424242"


class FakeTxBuilder(txbuilder_pb2_grpc.TxBuilderServicer):
    """A value of POOR_VALUE_WEI is more than the account has."""

    def __init__(self) -> None:
        self.script = Script()
        self.reserved: dict[str, txbuilder_pb2.BuiltTransaction] = {}
        self.released: list[str] = []
        self.drafted: list[str] = []
        self._free: list[int] = []
        self._next = 0

    async def ResolveTransfers(
        self, request: txbuilder_pb2.ResolveTransfersRequest, context: Any
    ) -> txbuilder_pb2.ResolveTransfersResponse:
        self.script.begin("ResolveTransfers")
        terms = []
        for index, transfer in enumerate(request.transfers):
            if transfer.chain_id == UNKNOWN_CHAIN:
                raise WalletError(Reason.UNKNOWN_CHAIN, "not configured", field="chain_id", rule="known", index=index)
            data = bytes.fromhex(transfer.data_hex[2:])
            if transfer.WhichOneof("payload") == "call":
                if transfer.call.signature != "ping()":
                    rule = "the arguments fit the signature"
                    raise WalletError(Reason.INVALID_CALLDATA, rule, field="call.arguments", rule=rule, index=index)
                data = b"\x5c\x36\xb1\x86"
            terms.append(
                Terms(
                    chain_id=transfer.chain_id,
                    from_address=transfer.from_address,
                    to_address=parse_address(transfer.to_address, "to") if transfer.to_address else b"",
                    value_wei=transfer.value_wei or "0",
                    data=data,
                )
            )
        return txbuilder_pb2.ResolveTransfersResponse(terms=terms)

    async def BuildTransaction(
        self, request: txbuilder_pb2.BuildTransactionRequest, context: Any
    ) -> txbuilder_pb2.BuiltTransaction:
        self.script.begin("BuildTransaction")
        built = self._build(request)
        await self.script.end("BuildTransaction")
        return built

    async def BuildTransactions(
        self, request: txbuilder_pb2.BuildTransactionsRequest, context: Any
    ) -> txbuilder_pb2.BuildTransactionsResponse:
        self.script.begin("BuildTransactions")
        reply = txbuilder_pb2.BuildTransactionsResponse()
        for item in request.items:
            try:
                reply.results.add(built=self._build(item))
            except WalletError as error:
                reply.results.add(error=to_item_error(error))
        await self.script.end("BuildTransactions")
        return reply

    async def DraftTransaction(
        self, request: txbuilder_pb2.BuildTransactionRequest, context: Any
    ) -> txbuilder_pb2.BuiltTransaction:
        self.script.begin("DraftTransaction")
        self.drafted.append(request.transfer_id)
        return self._transaction(request, self._free[0] if self._free else self._next)

    async def ReleaseNonce(
        self, request: txbuilder_pb2.ReleaseNonceRequest, context: Any
    ) -> txbuilder_pb2.ReleaseNonceResponse:
        self.script.begin("ReleaseNonce")
        built = self.reserved.pop(request.transfer_id, None)
        if built is None:
            raise WalletError(Reason.NOT_FOUND, "no reservation")
        heapq.heappush(self._free, built.nonce)
        self.released.append(request.transfer_id)
        await self.script.end("ReleaseNonce")
        return txbuilder_pb2.ReleaseNonceResponse()

    async def GetBuilderStatus(
        self, request: txbuilder_pb2.GetBuilderStatusRequest, context: Any
    ) -> txbuilder_pb2.BuilderStatus:
        self.script.begin("GetBuilderStatus")
        chain = txbuilder_pb2.ChainStatus(chain_id="eip155:31337", nodes_answering=3, nodes_required=2, block_number=7)
        return txbuilder_pb2.BuilderStatus(lock_available=True, chains=[chain])

    def _build(self, request: txbuilder_pb2.BuildTransactionRequest) -> txbuilder_pb2.BuiltTransaction:
        if request.transfer_id not in self.reserved:
            if request.terms.value_wei == POOR_VALUE_WEI:
                raise WalletError(Reason.INSUFFICIENT_FUNDS, "cannot pay", field="value_wei", rule="within the balance")
            nonce = heapq.heappop(self._free) if self._free else self._next
            self._next = max(self._next, nonce + 1)
            self.reserved[request.transfer_id] = self._transaction(request, nonce)
        return self.reserved[request.transfer_id]

    @staticmethod
    def _transaction(request: txbuilder_pb2.BuildTransactionRequest, nonce: int) -> txbuilder_pb2.BuiltTransaction:
        unsigned_tx = b"\x02unsigned:" + str(nonce).encode() + b":" + request.terms.SerializeToString()
        return txbuilder_pb2.BuiltTransaction(transfer_id=request.transfer_id, unsigned_tx=unsigned_tx, nonce=nonce)
