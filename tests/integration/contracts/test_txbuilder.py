"""What gateway rests on in `txbuilder`."""

from __future__ import annotations

import pytest

from protos.wallet.v1 import txbuilder_pb2 as pb
from services.core.addresses import Address, checksum_address
from services.core.errors import WalletError
from services.core.transactions import decode_unsigned
from tests.fakes.txbuilder import POOR_VALUE_WEI, UNKNOWN_CHAIN
from tests.integration.contracts.peers import (
    CHAIN_ID,
    RECEIVER,
    Account,
    Peers,
    build_request,
    refusal,
    refused_at,
    terms,
    unique,
)

TO = checksum_address(Address(RECEIVER))


def written(account: Account, **fields: object) -> pb.TransferRequest:
    """As a client writes it; by default one wei to somebody."""
    return pb.TransferRequest(
        **{"chain_id": CHAIN_ID, "from_address": account.address, "to_address": TO, "value_wei": "1", **fields}
    )


async def resolve(peers: Peers, *transfers: pb.TransferRequest) -> pb.ResolveTransfersResponse:
    reply: pb.ResolveTransfersResponse = await peers.txbuilder.ResolveTransfers(
        pb.ResolveTransfersRequest(transfers=transfers)
    )
    return reply


async def release(peers: Peers, transfer_id: str) -> None:
    await peers.txbuilder.ReleaseNonce(pb.ReleaseNonceRequest(transfer_id=transfer_id))


async def test_transfers_are_resolved_in_their_order(peers: Peers) -> None:
    account = await peers.account()
    token = pb.Erc20Transfer(token_address=TO, amount="5")
    resolved = await resolve(
        peers,
        written(account, value_wei="7"),
        written(account, data_hex="0xABcd"),
        written(account, value_wei="", call=pb.ContractCall(signature="ping()", arguments_json="[]")),
        written(account, value_wei="", to_address=checksum_address(Address(b"\x22" * 20)), erc20=token),
    )
    assert [(one.value_wei, one.to_address) for one in resolved.terms] == [
        *(("7", RECEIVER), ("1", RECEIVER), ("0", RECEIVER), ("0", RECEIVER)),
    ]
    # Solidity's selectors of ping() and of transfer(address,uint256).
    assert [one.data.hex() for one in resolved.terms] == [
        *("", "abcd", "5c36b186", "a9059cbb" + "00" * 12 + "22" * 20 + "5".rjust(64, "0")),
    ]
    assert {(one.chain_id, one.from_address) for one in resolved.terms} == {(CHAIN_ID, account.address)}


@pytest.mark.parametrize(
    ("wrong", "reason", "field"),
    [
        ({"chain_id": UNKNOWN_CHAIN}, "UNKNOWN_CHAIN", "chain_id"),
        ({"to_address": TO[:-1]}, "INVALID_ADDRESS", "to"),
        ({"value_wei": "01"}, "INVALID_AMOUNT", "value_wei"),
        ({"value_wei": ""}, "INVALID_REQUEST", "value_wei"),
        ({"to_address": ""}, "INVALID_REQUEST", "to"),
        ({"data_hex": "0xz"}, "INVALID_CALLDATA", "data"),
        ({"call": pb.ContractCall(signature="f(uint8)", arguments_json="{}")}, "INVALID_CALLDATA", "call.arguments"),
        ({"call": pb.ContractCall(signature="f(uint8)", arguments_json="[]")}, "INVALID_CALLDATA", "call.arguments"),
        ({"call": pb.ContractCall(signature="f (uint8)", arguments_json="[1]")}, "INVALID_CALLDATA", "call.signature"),
    ],
)
async def test_the_first_bad_transfer_is_named(peers: Peers, wrong: dict[str, object], reason: str, field: str) -> None:
    account = await peers.account()
    good, bad = written(account), written(account, **wrong)
    with pytest.raises(WalletError) as raised:
        await resolve(peers, good, bad, good, bad)
    refused = raised.value
    assert (refused.reason.name, refused.details["field"], refused.details["index"]) == (reason, field, "1")
    assert refused.details["rule"]


async def test_an_empty_batch_is_refused(peers: Peers) -> None:
    assert await refusal(resolve(peers)) == ("INVALID_REQUEST", "transfers")
    empty = pb.BuildTransactionsRequest()
    assert await refusal(peers.txbuilder.BuildTransactions(empty)) == ("INVALID_REQUEST", "items")


async def test_a_transfer_is_built_once(peers: Peers) -> None:
    account = await peers.account()
    request = build_request(account, "7")
    built = await peers.txbuilder.BuildTransaction(request)
    tx = decode_unsigned(built.unsigned_tx)
    assert (built.transfer_id, built.nonce, tx.nonce) == (request.transfer_id, 0, 0)
    assert (tx.chain_id, tx.to, tx.value_wei, tx.data, tx.gas_limit) == (31337, RECEIVER, 7, b"", built.gas_limit)
    assert int(built.max_fee_wei) >= built.gas_limit > 0
    assert await peers.txbuilder.BuildTransaction(request) == built
    batch = await peers.txbuilder.BuildTransactions(pb.BuildTransactionsRequest(items=[request]))
    assert [one.built for one in batch.results] == [built]
    other = pb.BuildTransactionRequest(transfer_id=request.transfer_id, terms=terms(account, "8"))
    assert await refusal(peers.txbuilder.BuildTransaction(other)) == ("ALREADY_EXISTS", "terms")


async def test_nonces_are_counted_for_each_account(peers: Peers) -> None:
    first, second = await peers.account(), await peers.account()
    built = [await peers.built(account) for account in (first, second, first)]
    assert [one.nonce for one in built] == [0, 0, 1]


async def test_an_item_that_cannot_be_paid_takes_no_nonce(peers: Peers) -> None:
    account = await peers.account()
    poor = build_request(account, POOR_VALUE_WEI)
    with pytest.raises(WalletError) as raised:
        await peers.txbuilder.BuildTransaction(poor)
    assert raised.value.reason.name == "INSUFFICIENT_FUNDS"
    assert (raised.value.details["field"], bool(raised.value.details["rule"])) == ("value_wei", True)
    items = [build_request(account), poor, build_request(account)]
    batch = await peers.txbuilder.BuildTransactions(pb.BuildTransactionsRequest(items=items))
    assert [one.WhichOneof("result") for one in batch.results] == ["built", "error", "built"]
    assert (batch.results[1].error.reason, batch.results[1].error.details["field"]) == (
        *("INSUFFICIENT_FUNDS", "value_wei"),
    )
    assert [(one.built.transfer_id, one.built.nonce) for one in (batch.results[0], batch.results[2])] == [
        *((items[0].transfer_id, 0), (items[2].transfer_id, 1)),
    ]


async def test_a_batch_is_of_one_account_and_of_different_transfers(peers: Peers) -> None:
    first, second = await peers.account(), await peers.account()
    item = build_request(first)
    for items in ([item, build_request(second)], [item, item]):
        call = peers.txbuilder.BuildTransactions(pb.BuildTransactionsRequest(items=items))
        assert await refusal(call) == ("INVALID_REQUEST", "items")
    # None of them was built.
    assert (await peers.built(first)).nonce == 0


async def test_a_draft_holds_no_nonce(peers: Peers) -> None:
    account = await peers.account()
    await peers.built(account)
    # A denied transfer may be more than the account has.
    drafts = [await peers.txbuilder.DraftTransaction(build_request(account, POOR_VALUE_WEI)) for _ in range(2)]
    assert [draft.nonce for draft in drafts] == [1, 1]
    assert decode_unsigned(drafts[0].unsigned_tx).value_wei == int(POOR_VALUE_WEI)
    assert (await peers.built(account)).nonce == 1


async def test_a_released_nonce_is_used_first_and_its_transfer_never_built_again(peers: Peers) -> None:
    account = await peers.account()
    requests = [build_request(account) for _ in range(4)]
    for request in requests:
        await peers.txbuilder.BuildTransaction(request)
    for request in (requests[2], requests[1], requests[1]):
        await release(peers, request.transfer_id)
    assert await refusal(peers.txbuilder.BuildTransaction(requests[1])) == ("LINK_VOIDED", "transfer_id")
    assert (await peers.txbuilder.DraftTransaction(build_request(account))).nonce == 1
    # Lowest first, and each given back once.
    assert [(await peers.built(account)).nonce for _ in range(3)] == [1, 2, 4]


async def test_a_transfer_released_before_it_was_built_is_never_built(peers: Peers) -> None:
    account = await peers.account()
    late = build_request(account)
    await release(peers, late.transfer_id)
    assert await refusal(peers.txbuilder.BuildTransaction(late)) == ("LINK_VOIDED", "transfer_id")
    items = [build_request(account), late]
    batch = await peers.txbuilder.BuildTransactions(pb.BuildTransactionsRequest(items=items))
    assert [one.WhichOneof("result") for one in batch.results] == ["built", "error"]
    assert (batch.results[0].built.nonce, batch.results[1].error.reason) == (0, "LINK_VOIDED")


async def test_an_unknown_chain_is_named(peers: Peers) -> None:
    account = await peers.account()
    request = pb.BuildTransactionRequest(transfer_id=unique("t"), terms=terms(account))
    request.terms.chain_id = UNKNOWN_CHAIN
    for call in (peers.txbuilder.BuildTransaction, peers.txbuilder.DraftTransaction):
        assert await refusal(call(request)) == ("UNKNOWN_CHAIN", "chain_id")
    mixed = resolve(peers, written(account), written(account, chain_id=UNKNOWN_CHAIN))
    assert await refused_at(mixed) == "1"


async def test_the_status_tells_of_the_lock_and_each_chain(peers: Peers) -> None:
    status = await peers.txbuilder.GetBuilderStatus(pb.GetBuilderStatusRequest())
    (chain,) = status.chains
    assert (status.lock_available, chain.chain_id) == (True, CHAIN_ID)
    assert chain.nodes_answering >= chain.nodes_required == 2
    assert int(chain.base_fee_wei) > 0
