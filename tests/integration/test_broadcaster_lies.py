"""One of three nodes lies, or is slow: what is claimed of a transfer stays what the other two say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from protos.wallet.v1 import broadcaster_pb2 as pb
from tests.integration.broadcaster_rig import Rig, Transfer, make_transfer, rig, verify
from tests.integration.running_evidence import DevCa

SUBMITTED, INCLUDED = pb.SUBMISSION_STATE_SUBMITTED, pb.SUBMISSION_STATE_INCLUDED
FINALIZED, NONCE_SPENT = pb.SUBMISSION_STATE_FINALIZED, pb.SUBMISSION_STATE_NONCE_SPENT
NONE = pb.STALL_CAUSE_UNSPECIFIED
# The one that is asked first for everything that one node is asked for.
LIAR = "node-a"

Json = dict[str, Any]


@pytest.fixture
async def broadcaster(
    service_database: Callable[[str], Any], dev_ca: DevCa, start_anvil: Callable[..., str], tmp_path: Path
) -> AsyncIterator[Rig]:
    """On a chain whose blocks are mined when the test says so; final is what lies two blocks back."""
    settings = {"resend_after_s": 0.5, "stall_after_s": 60.0, "nonce_check_s": 0.2}
    async with rig(service_database, dev_ca, start_anvil(), tmp_path, **settings) as made:
        await made.rpc("evm_setAutomine", False)
        await made.start()
        await made.until_watching()
        await made.mine(3)
        yield made


def result(method: str, lie: Callable[[Any, Any], Any]) -> Callable[[Json, Json], Json]:
    """Answer what `lie` makes of (params, result)."""

    def told(call: Json, answer: Json) -> Json:
        if call["method"] != method or answer.get("result") is None:
            return answer
        return {**answer, "result": lie(call["params"], answer["result"])}

    return told


def error(method: str, message: str) -> Callable[[Json, Json], Json]:
    def told(call: Json, answer: Json) -> Json:
        if call["method"] != method:
            return answer
        return {"jsonrpc": "2.0", "id": answer["id"], "error": {"code": -32000, "message": message}}

    return told


def _other_hash(params: Any, block: Json) -> Json:
    return {**block, "hash": "0x" + "66" * 32}


def _hidden(params: Any, block: Json) -> Json:
    return {**block, "transactions": []}


def _everything_is_final(params: Any, block: Json) -> Json:
    return {**block, "number": "0xffff", "hash": "0x" + "77" * 32} if params[0] in ("safe", "finalized") else block


def _reverted(params: Any, receipts: list[Json]) -> list[Json]:
    return [{**receipt, "status": "0x0"} for receipt in receipts]


LIES = {
    "another hash for every block": result("eth_getBlockByNumber", _other_hash),
    "blocks without our transaction": result("eth_getBlockByNumber", _hidden),
    "the newest block is far above": result(
        "eth_getBlockByNumber", lambda params, block: {**block, "number": "0xffff"} if params[0] == "latest" else block
    ),
    "what is final lies above": result("eth_getBlockByNumber", _everything_is_final),
    "nothing is final": result(
        "eth_getBlockByNumber", lambda params, block: None if params[0] in ("safe", "finalized") else block
    ),
    "the receipt says reverted": result("eth_getBlockReceipts", _reverted),
    "there is no receipt": result("eth_getTransactionReceipt", lambda params, receipt: None),
    "the receipt is in another block": result(
        "eth_getTransactionReceipt", lambda params, receipt: {**receipt, "blockNumber": "0x1"}
    ),
    "every nonce is spent": result("eth_getTransactionCount", lambda params, count: "0x63"),
    "no nonce is spent": result("eth_getTransactionCount", lambda params, count: "0x0"),
    "its balance is gone": error("eth_sendRawTransaction", "insufficient funds for gas * price + value: balance 0"),
    "its nonce is spent": error("eth_sendRawTransaction", "nonce too low: next nonce 9, tx nonce 0"),
    "its fee is too low": error("eth_sendRawTransaction", "replacement transaction underpriced"),
    "nonsense": lambda call, answer: {**answer, "result": {"number": "zero"}},
}


async def hand_over(broadcaster: Rig, transfer: Transfer) -> None:
    await broadcaster.sign(transfer)
    await broadcaster.submit(transfer)


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_a_lie_changes_nothing(broadcaster: Rig, lie: Any, tmp_path: Path) -> None:
    broadcaster.proxies.nodes[LIAR].lie = lie
    # The second meets a nonce that the service has not seen requested before: the chain is asked for it.
    for nonce in range(2):
        transfer = make_transfer(f"t-{nonce}", nonce)
        await hand_over(broadcaster, transfer)
        await broadcaster.until_known(transfer)
        await broadcaster.until_status(transfer, lambda now: now.state == SUBMITTED)
        await asyncio.sleep(0.5)
        assert (await broadcaster.status(transfer)).stall == NONE
        await broadcaster.mine()
        shown = await broadcaster.until_status(transfer, lambda now: now.state == INCLUDED)
        block = await broadcaster.rpc("eth_getBlockByNumber", "latest", False)
        assert (shown.block_hash.hex(), shown.receipt_status) == (block["hash"][2:], 1)
        # Final two blocks later, and not before.
        await broadcaster.mine()
        await asyncio.sleep(0.5)
        assert (await broadcaster.status(transfer)).state < FINALIZED
        await broadcaster.mine()
        await broadcaster.until(FINALIZED, transfer)
        bodies = [body for entry_id, body in await broadcaster.entries(transfer) if entry_id.startswith("inclusion")]
        assert all(len(body["agreeing_nodes"]) >= 2 for body in bodies)
        await verify(broadcaster, transfer, tmp_path)


@pytest.mark.parametrize(
    "lie", ["another hash for every block", "blocks without our transaction", "its balance is gone"]
)
async def test_a_lie_is_told(broadcaster: Rig, caplog: pytest.LogCaptureFixture, lie: str) -> None:
    broadcaster.proxies.nodes[LIAR].lie = LIES[lie]
    transfer = make_transfer("t-0", 0)
    await hand_over(broadcaster, transfer)
    await broadcaster.until_known(transfer)
    await broadcaster.mine(3)
    await broadcaster.until(FINALIZED, transfer)
    told = {record.getMessage() for record in caplog.records}
    if lie == "blocks without our transaction":
        # Its word for a block's transactions is not needed, and what it tells of one whole must hash to the block.
        assert told.isdisjoint({"nodes disagree"})
    elif lie == "another hash for every block":
        assert "nodes disagree" in told
    else:
        assert "a node refuses transactions" in told


@pytest.mark.parametrize("answer", ["says so", "denies it", "is slow"])
async def test_a_nonce_is_spent_when_two_say_so(broadcaster: Rig, answer: str) -> None:
    """Of the transfers, the one whose nonce another has; the liar would end the other one, or save the first."""
    lost, sound = make_transfer("t-0", 0), make_transfer("t-1", 1)
    foreign = make_transfer("somebody", 0, value_wei=9)
    await broadcaster.rpc("eth_sendRawTransaction", "0x" + foreign.raw_tx.hex())
    await broadcaster.mine(4)
    liar = broadcaster.proxies.nodes[LIAR]
    if answer == "says so":
        liar.lie = result("eth_getTransactionCount", lambda params, count: "0x63")
    elif answer == "denies it":

        def deny(call: Json, answered: Json) -> Json:
            if call["method"] == "eth_getTransactionReceipt":
                return {**answered, "result": {"blockNumber": "0x2", "transactionHash": call["params"][0]}}
            return answered

        liar.lie = deny
    else:
        broadcaster.proxies.fault(LIAR, delay_s=1.5)
    for transfer in (lost, sound):
        await hand_over(broadcaster, transfer)
    await broadcaster.until_status(lost, lambda now: now.state == NONCE_SPENT)
    await broadcaster.until_known(sound)
    await asyncio.sleep(1.0)
    assert (await broadcaster.status(sound)).state == SUBMITTED
    await broadcaster.mine(4)
    await broadcaster.until(FINALIZED, sound)


async def test_one_that_alone_calls_a_spent_nonce_final_ends_nothing(broadcaster: Rig) -> None:
    """It is spent by another, and may still be reorganised away."""
    lost = make_transfer("t-0", 0)
    foreign = make_transfer("somebody", 0, value_wei=9)
    await broadcaster.rpc("eth_sendRawTransaction", "0x" + foreign.raw_tx.hex())
    await broadcaster.mine()
    broadcaster.proxies.nodes[LIAR].lie = result("eth_getTransactionCount", lambda params, count: "0x63")
    await hand_over(broadcaster, lost)
    await asyncio.sleep(2.0)
    assert (await broadcaster.status(lost)).state == SUBMITTED
    await broadcaster.mine(2)
    await broadcaster.until_status(lost, lambda now: now.state == NONCE_SPENT)


async def test_a_low_count_by_one_node_holds_nothing_back(broadcaster: Rig) -> None:
    """The first nonce was spent before the service knew the account: only the chain can say so."""
    foreign = make_transfer("somebody", 0, value_wei=9)
    await broadcaster.rpc("eth_sendRawTransaction", "0x" + foreign.raw_tx.hex())
    await broadcaster.mine()
    broadcaster.proxies.nodes[LIAR].lie = LIES["no nonce is spent"]
    transfer = make_transfer("t-1", 1)
    await hand_over(broadcaster, transfer)
    await broadcaster.until_known(transfer)


async def test_one_that_alone_calls_a_stranger_the_spender_ends_nothing(broadcaster: Rig) -> None:
    """Its word for all of it: the nonce is spent, finally, and no receipt exists. The transfer waits in the pool."""
    transfer = make_transfer("t-0", 0)

    def lie(call: Json, answered: Json) -> Json:
        told = {"eth_getTransactionCount": "0x63", "eth_getTransactionReceipt": None}
        return {**answered, "result": told[call["method"]]} if call["method"] in told else answered

    broadcaster.proxies.nodes[LIAR].lie = lie
    await hand_over(broadcaster, transfer)
    await broadcaster.until_known(transfer)
    await asyncio.sleep(2.0)
    assert (await broadcaster.status(transfer)).state == SUBMITTED
    await broadcaster.mine(4)
    await broadcaster.until(FINALIZED, transfer)


async def test_a_slow_node_delays_no_other(broadcaster: Rig) -> None:
    broadcaster.proxies.fault(LIAR, delay_s=1.5)
    transfer = make_transfer("t-0", 0)
    began = asyncio.get_running_loop().time()
    await hand_over(broadcaster, transfer)
    await broadcaster.until_known(transfer)
    await broadcaster.mine(4)
    await broadcaster.until(FINALIZED, transfer)
    assert asyncio.get_running_loop().time() - began < 10.0
