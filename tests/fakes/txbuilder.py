"""Nonces in memory, under the promises of the real one: idempotent by transfer id, a released nonce is used first."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from protos.wallet.v1 import txbuilder_pb2, txbuilder_pb2_grpc
from protos.wallet.v1.common_pb2 import Terms
from services.core.addresses import Address, parse_address
from services.core.amounts import parse_chain_id, parse_wei
from services.core.errors import Reason, WalletError, refuse
from services.core.transactions import Eip1559Transaction, decode_unsigned, encode_unsigned
from services.runtime.rpc_errors import to_item_error
from services.txbuilder.transfers import check_chain, resolve_call, resolve_data, resolve_erc20
from tests.fakes.script import Script

# More than BALANCE_WEI, and within what the policy allows.
POOR_VALUE_WEI = str(50 * 10**18)
BALANCE_WEI = 10 * 10**18
UNKNOWN_CHAIN = "eip155:424242"
_CHAINS = frozenset({"eip155:31337"})
_GAS_LIMIT, _FEE_WEI, _TIP_WEI = 21_000, 2_000_000_000, 1_000_000_000


@dataclass
class _Sequence:
    """Nonces of one account. `peek` is what the next build gets."""

    free: list[int] = field(default_factory=list)
    next: int = 0

    def peek(self) -> int:
        return self.free[0] if self.free else self.next

    def take(self) -> int:
        if self.free:
            return heapq.heappop(self.free)
        self.next += 1
        return self.next - 1


class FakeTxBuilder(txbuilder_pb2_grpc.TxBuilderServicer):
    """Each account has BALANCE_WEI for every transfer."""

    def __init__(self) -> None:
        self.script = Script()
        self.reserved: dict[str, txbuilder_pb2.BuiltTransaction] = {}
        self.released: list[str] = []
        # Of ListGaps: all, and how many a page has.
        self.gaps: list[txbuilder_pb2.Gap] = []
        self.gaps_a_page = 1_000
        # By transfer: its replacements, from number 1 on.
        self.bumps: dict[str, list[txbuilder_pb2.BuiltTransaction]] = {}
        self.superseding: dict[str, txbuilder_pb2.BuildSupersedingRequest] = {}
        self._requests: dict[str, txbuilder_pb2.BuildTransactionRequest] = {}
        self._sequences: dict[tuple[str, bytes], _Sequence] = {}

    async def ResolveTransfers(
        self, request: txbuilder_pb2.ResolveTransfersRequest, context: Any
    ) -> txbuilder_pb2.ResolveTransfersResponse:
        self.script.begin("ResolveTransfers")
        _check_count(request.transfers, "transfers")
        reply = txbuilder_pb2.ResolveTransfersResponse()
        for index, transfer in enumerate(request.transfers):
            try:
                reply.terms.append(_resolve(transfer))
            except WalletError as error:
                raise WalletError(error.reason, error.message, **{**error.details, "index": index}) from None
        return reply

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
        _check_count(request.items, "items")
        if len({(item.terms.chain_id, item.terms.from_address) for item in request.items}) > 1:
            refuse("items", "are all of one chain and sender")
        if len({item.transfer_id for item in request.items}) < len(request.items):
            refuse("items", "are transfers of different ids")
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
        check_chain(request.terms.chain_id, _CHAINS)
        return _transaction(request, self._sequence(request.terms).peek())

    async def ReleaseNonce(
        self, request: txbuilder_pb2.ReleaseNonceRequest, context: Any
    ) -> txbuilder_pb2.ReleaseNonceResponse:
        self.script.begin("ReleaseNonce")
        built = self.reserved.pop(request.transfer_id, None)
        if built is not None and request.transfer_id not in self.superseding:
            sequence = self._sequence(self._requests[request.transfer_id].terms)
            heapq.heappush(sequence.free, built.nonce)
        if request.transfer_id not in self.released:
            self.released.append(request.transfer_id)
        await self.script.end("ReleaseNonce")
        return txbuilder_pb2.ReleaseNonceResponse()

    async def BumpTransaction(
        self, request: txbuilder_pb2.BumpTransactionRequest, context: Any
    ) -> txbuilder_pb2.BuiltTransaction:
        self.script.begin("BumpTransaction")
        if request.transfer_id not in self.reserved:
            raise WalletError(Reason.NOT_FOUND, "no such transfer was built", field="transfer_id")
        versions = self.bumps.setdefault(request.transfer_id, [])
        if not 1 <= request.replacement <= len(versions) + 1:
            refuse("replacement", "is one that was built, or the next")
        if request.replacement > len(versions):
            versions.append(_raised(self.reserved[request.transfer_id], request.replacement))
        await self.script.end("BumpTransaction")
        return versions[request.replacement - 1]

    async def BuildSuperseding(
        self, request: txbuilder_pb2.BuildSupersedingRequest, context: Any
    ) -> txbuilder_pb2.BuiltTransaction:
        self.script.begin("BuildSuperseding")
        if self.superseding.setdefault(request.transfer_id, request) != request:
            raise WalletError(Reason.ALREADY_EXISTS, "built before", field="transfer_id", rule="is that of before")
        terms = Terms(
            chain_id=request.chain_id,
            from_address=request.from_address,
            to_address=request.from_address,
            value_wei="0",
        )
        build = txbuilder_pb2.BuildTransactionRequest(transfer_id=request.transfer_id, terms=terms)
        self.reserved.setdefault(request.transfer_id, _raised(_transaction(build, request.nonce), 9))
        await self.script.end("BuildSuperseding")
        return self.reserved[request.transfer_id]

    async def ListGaps(self, request: txbuilder_pb2.ListGapsRequest, context: Any) -> txbuilder_pb2.ListGapsResponse:
        self.script.begin("ListGaps")
        first = int(request.after or 0)
        end = first + self.gaps_a_page
        return txbuilder_pb2.ListGapsResponse(gaps=self.gaps[first:end], next=str(end) if end < len(self.gaps) else "")

    async def GetBuilderStatus(
        self, request: txbuilder_pb2.GetBuilderStatusRequest, context: Any
    ) -> txbuilder_pb2.BuilderStatus:
        self.script.begin("GetBuilderStatus")
        chain = txbuilder_pb2.ChainStatus(
            chain_id="eip155:31337", nodes_answering=3, nodes_required=2, block_number=7, base_fee_wei="1000000000"
        )
        return txbuilder_pb2.BuilderStatus(lock_available=True, chains=[chain])

    def _sequence(self, terms: Terms) -> _Sequence:
        return self._sequences.setdefault((terms.chain_id, terms.from_address), _Sequence())

    def _build(self, request: txbuilder_pb2.BuildTransactionRequest) -> txbuilder_pb2.BuiltTransaction:
        check_chain(request.terms.chain_id, _CHAINS)
        if request.transfer_id in self.released:
            raise WalletError(Reason.LINK_VOIDED, "its nonce was given back", field="transfer_id")
        if request.transfer_id in self.reserved:
            if self._requests[request.transfer_id] != request:
                raise WalletError(Reason.ALREADY_EXISTS, "built before", field="terms", rule="are those of before")
            return self.reserved[request.transfer_id]
        if int(request.terms.value_wei) > BALANCE_WEI:
            raise WalletError(
                Reason.INSUFFICIENT_FUNDS, "cannot pay", field="value_wei", rule="is within the balance, fee included"
            )
        self._requests[request.transfer_id] = request
        built = self.reserved[request.transfer_id] = _transaction(request, self._sequence(request.terms).take())
        return built


def _check_count(items: Sequence[object], name: str) -> None:
    if not 1 <= len(items) <= 1_000:
        refuse(name, "has 1 to 1000 items")


def _resolve(transfer: txbuilder_pb2.TransferRequest) -> Terms:
    check_chain(transfer.chain_id, _CHAINS)
    to, data = parse_address(transfer.to_address, "to") if transfer.to_address else None, b""
    match transfer.WhichOneof("payload"):
        case "erc20":
            to, data = resolve_erc20(transfer.to_address, transfer.erc20.token_address, transfer.erc20.amount)
        case "call":
            data = resolve_call(transfer.call.signature, transfer.call.arguments_json)
        case "data_hex":
            data = resolve_data(transfer.data_hex)
        case None if not transfer.value_wei:
            refuse("value_wei", "is there for a plain transfer")
    if to is None and not data:
        refuse("to", "is there unless data creates a contract")
    return Terms(
        chain_id=transfer.chain_id,
        from_address=transfer.from_address,
        to_address=to or b"",
        value_wei=str(parse_wei(transfer.value_wei or "0", "value_wei")),
        data=data,
    )


def _transaction(request: txbuilder_pb2.BuildTransactionRequest, nonce: int) -> txbuilder_pb2.BuiltTransaction:
    terms = request.terms
    tx = Eip1559Transaction(
        parse_chain_id(terms.chain_id, "chain_id"),
        nonce,
        _TIP_WEI,
        _FEE_WEI,
        _GAS_LIMIT,
        Address(terms.to_address) if terms.to_address else None,
        int(terms.value_wei),
        terms.data,
    )
    return txbuilder_pb2.BuiltTransaction(
        transfer_id=request.transfer_id,
        unsigned_tx=encode_unsigned(tx),
        nonce=nonce,
        gas_limit=_GAS_LIMIT,
        max_fee_wei=str(_GAS_LIMIT * _FEE_WEI),
    )


def _raised(built: txbuilder_pb2.BuiltTransaction, number: int) -> txbuilder_pb2.BuiltTransaction:
    """The same transaction, its fees raised `number` times."""
    tx = decode_unsigned(built.unsigned_tx)
    assert isinstance(tx, Eip1559Transaction)
    raised = replace(
        tx,
        max_fee_per_gas_wei=tx.max_fee_per_gas_wei * (10 + 2 * number) // 10,
        max_priority_fee_per_gas_wei=tx.max_priority_fee_per_gas_wei * (10 + 2 * number) // 10,
    )
    return txbuilder_pb2.BuiltTransaction(
        transfer_id=built.transfer_id,
        unsigned_tx=encode_unsigned(raised),
        nonce=built.nonce,
        gas_limit=built.gas_limit,
        max_fee_wei=str(built.gas_limit * raised.max_fee_per_gas_wei),
    )
