"""`wallet.v1.TxBuilder` ⇄ domain."""

from __future__ import annotations

from typing import Any, Literal

import grpc

from protos.wallet.v1 import common_pb2, txbuilder_pb2_grpc
from protos.wallet.v1 import txbuilder_pb2 as pb
from services.core.addresses import Address, parse_address
from services.core.amounts import format_chain_id, parse_wei
from services.core.errors import WalletError, refuse
from services.runtime.lock import LeaseLock
from services.runtime.rpc_errors import to_item_error
from services.txbuilder.building import Builder
from services.txbuilder.chain import ChainReader
from services.txbuilder.fees import Fees, Market, check_cap, check_gas_limit
from services.txbuilder.gaps import GapSearch
from services.txbuilder.replacing import Replacer
from services.txbuilder.store import AccountKey, Reservation, Store
from services.txbuilder.transfers import (
    Draft,
    Options,
    Terms,
    check_chain,
    check_options,
    resolve_call,
    resolve_data,
    resolve_erc20,
)

MAX_ITEMS = 1_000

Context = grpc.aio.ServicerContext[Any, Any]
_KINDS = {
    common_pb2.FeeOptions.TRANSACTION_TYPE_LEGACY: 0,
    common_pb2.FeeOptions.TRANSACTION_TYPE_ACCESS_LIST: 1,
    common_pb2.FeeOptions.TRANSACTION_TYPE_DYNAMIC_FEE: 2,
}


class TxBuilderServicer(txbuilder_pb2_grpc.TxBuilderServicer):
    def __init__(
        self,
        builder: Builder,
        replacer: Replacer,
        gaps: GapSearch,
        chain: ChainReader,
        store: Store,
        lock: LeaseLock,
    ) -> None:
        self._builder = builder
        self._replacer = replacer
        self._gaps = gaps
        self._chain = chain
        self._store = store
        self._lock = lock

    async def ResolveTransfers(
        self, request: pb.ResolveTransfersRequest, context: Context
    ) -> pb.ResolveTransfersResponse:
        _check_count(len(request.transfers), "transfers")
        reply = pb.ResolveTransfersResponse()
        for index, transfer in enumerate(request.transfers):
            try:
                reply.terms.append(await self._resolve(transfer))
            except WalletError as error:
                raise WalletError(error.reason, error.message, **{**error.details, "index": index}) from None
        return reply

    async def _resolve(self, transfer: pb.TransferRequest) -> common_pb2.Terms:
        chain_id = check_chain(transfer.chain_id, self._chain.chain_ids)
        options = _options(transfer.fees)
        check_options(options)
        to, data = _receiver(transfer)
        payload = transfer.WhichOneof("payload")
        if payload is None and not transfer.value_wei:
            refuse("value_wei", "is there for a plain transfer")
        if to is None and not data:
            refuse("to", "is there unless data creates a contract")
        value_wei = parse_wei(transfer.value_wei or "0", "value_wei")
        _check_market(options.fees, await self._chain.market(format_chain_id(chain_id)))
        return common_pb2.Terms(
            chain_id=transfer.chain_id,
            from_address=transfer.from_address,
            to_address=to or b"",
            value_wei=str(value_wei),
            data=data,
        )

    async def BuildTransaction(self, request: pb.BuildTransactionRequest, context: Context) -> pb.BuiltTransaction:
        (built,) = await self._builder.build([_draft(request, self._chain.chain_ids)])
        if isinstance(built, WalletError):
            raise built
        return _from_reservation(built)

    async def BuildTransactions(
        self, request: pb.BuildTransactionsRequest, context: Context
    ) -> pb.BuildTransactionsResponse:
        _check_count(len(request.items), "items")
        drafts = [_draft(item, self._chain.chain_ids) for item in request.items]
        if len({(draft.terms.chain_id, draft.terms.sender) for draft in drafts}) > 1:
            refuse("items", "are all of one chain and sender")
        if len({draft.transfer_id for draft in drafts}) < len(drafts):
            refuse("items", "are transfers of different ids")
        reply = pb.BuildTransactionsResponse()
        for built in await self._builder.build(drafts):
            if isinstance(built, WalletError):
                reply.results.add(error=to_item_error(built))
            else:
                reply.results.add(built=_from_reservation(built))
        return reply

    async def DraftTransaction(self, request: pb.BuildTransactionRequest, context: Context) -> pb.BuiltTransaction:
        return _from_reservation(await self._builder.draft(_draft(request, self._chain.chain_ids)))

    async def ReleaseNonce(self, request: pb.ReleaseNonceRequest, context: Context) -> pb.ReleaseNonceResponse:
        if not request.transfer_id:
            refuse("transfer_id", "is there")
        await self._store.release(request.transfer_id)
        return pb.ReleaseNonceResponse()

    async def BumpTransaction(self, request: pb.BumpTransactionRequest, context: Context) -> pb.BuiltTransaction:
        if not request.transfer_id:
            refuse("transfer_id", "is there")
        found, version = await self._replacer.bump(request.transfer_id, request.replacement)
        return pb.BuiltTransaction(
            transfer_id=request.transfer_id,
            unsigned_tx=version.unsigned_tx,
            nonce=found.nonce,
            gas_limit=found.gas_limit,
            max_fee_wei=str(version.max_fee_wei),
        )

    async def BuildSuperseding(self, request: pb.BuildSupersedingRequest, context: Context) -> pb.BuiltTransaction:
        if not request.transfer_id:
            refuse("transfer_id", "is there")
        if request.supersedes == request.transfer_id:
            refuse("supersedes", "is another transfer")
        if len(request.from_address) != 20:
            refuse("from_address", "has 20 bytes")
        account = AccountKey(
            format_chain_id(check_chain(request.chain_id, self._chain.chain_ids)), Address(request.from_address)
        )
        return _from_reservation(
            await self._replacer.supersede(request.transfer_id, account, request.nonce, request.supersedes)
        )

    async def ListGaps(self, request: pb.ListGapsRequest, context: Context) -> pb.ListGapsResponse:
        page = await self._gaps.run(request.older_than_ms / 1000, _account_after(request))
        return pb.ListGapsResponse(
            next=_cursor(page.next) if page.next is not None else "",
            gaps=[
                pb.Gap(
                    chain_id=gap.account.chain_id,
                    from_address=gap.account.address,
                    nonce=gap.nonce,
                    transfer_id=gap.transfer_id,
                )
                for gap in page.gaps
            ],
        )

    async def GetBuilderStatus(self, request: pb.GetBuilderStatusRequest, context: Context) -> pb.BuilderStatus:
        reply = pb.BuilderStatus(lock_available=await self._lock.available())
        for health in await self._chain.health():
            chain = reply.chains.add(
                chain_id=health.chain_id, nodes_answering=health.nodes_answering, nodes_required=health.nodes_required
            )
            if health.market is not None:
                chain.block_number = health.market.block_number
                chain.base_fee_wei = str(health.market.base_fee_wei)
        return reply


def _cursor(account: AccountKey) -> str:
    """CAIP-10."""
    return f"{account.chain_id}:0x{account.address.hex()}"


def _account_after(request: pb.ListGapsRequest) -> AccountKey | None:
    if not request.after:
        return None
    chain_id, _, address = request.after.rpartition(":0x")
    try:
        account = AccountKey(chain_id, Address(bytes.fromhex(address)))
    except ValueError:
        refuse("after", "is the `next` of an earlier answer")
    if len(account.address) != 20 or _cursor(account) != request.after:
        refuse("after", "is the `next` of an earlier answer")
    return account


def _check_count(count: int, field: str) -> None:
    if not 1 <= count <= MAX_ITEMS:
        refuse(field, f"has 1 to {MAX_ITEMS} items")


def _check_market(fees: Fees, market: Market) -> None:
    """What the next block would refuse is refused at once, before the transfer is accepted."""
    if fees.gas_limit is not None:
        check_gas_limit(fees.gas_limit, market)
    for field in ("max_fee_per_gas_wei", "gas_price_wei"):
        if (cap := getattr(fees, field)) is not None:
            check_cap(field, cap, market)


def _receiver(transfer: pb.TransferRequest) -> tuple[Address | None, bytes]:
    """(address that is called, call data)."""
    match transfer.WhichOneof("payload"):
        case "erc20":
            return resolve_erc20(transfer.to_address, transfer.erc20.token_address, transfer.erc20.amount)
        case "call":
            data = resolve_call(transfer.call.signature, transfer.call.arguments_json)
        case "data_hex":
            data = resolve_data(transfer.data_hex)
        case _:
            data = b""
    return (parse_address(transfer.to_address, "to") if transfer.to_address else None), data


def _options(fees: common_pb2.FeeOptions) -> Options:
    kind = _KINDS.get(fees.type)
    if kind is None:
        legacy = fees.HasField("gas_price_wei") and not fees.access_list
        kind = 0 if legacy else 1 if fees.HasField("gas_price_wei") else 2

    def wei(field: Literal["gas_price_wei", "max_fee_per_gas_wei", "max_priority_fee_per_gas_wei"]) -> int | None:
        return parse_wei(getattr(fees, field), field) if fees.HasField(field) else None

    for entry in fees.access_list:
        if len(entry.address) != 20 or any(len(key) != 32 for key in entry.storage_keys):
            refuse("access_list", "has addresses of 20 and storage keys of 32 bytes")
    return Options(
        kind,
        Fees(
            gas_limit=fees.gas_limit if fees.HasField("gas_limit") else None,
            gas_price_wei=wei("gas_price_wei"),
            max_fee_per_gas_wei=wei("max_fee_per_gas_wei"),
            max_priority_fee_per_gas_wei=wei("max_priority_fee_per_gas_wei"),
        ),
        tuple((Address(entry.address), tuple(entry.storage_keys)) for entry in fees.access_list),
    )


def _draft(request: pb.BuildTransactionRequest, known_chains: frozenset[str]) -> Draft:
    if not request.transfer_id:
        refuse("transfer_id", "is there")
    terms = request.terms
    if len(terms.from_address) != 20:
        refuse("terms.from_address", "has 20 bytes")
    if len(terms.to_address) not in (0, 20):
        refuse("terms.to_address", "has 20 bytes, or none for a creation")
    options = _options(request.fees)
    check_options(options)
    return Draft(
        request.transfer_id,
        Terms(
            check_chain(terms.chain_id, known_chains),
            Address(terms.from_address),
            Address(terms.to_address) if terms.to_address else None,
            parse_wei(terms.value_wei, "terms.value_wei"),
            terms.data,
        ),
        options,
    )


def _from_reservation(reservation: Reservation) -> pb.BuiltTransaction:
    return pb.BuiltTransaction(
        transfer_id=reservation.transfer_id,
        unsigned_tx=reservation.unsigned_tx,
        nonce=reservation.nonce,
        gas_limit=reservation.gas_limit,
        max_fee_wei=str(reservation.max_fee_wei),
    )
