"""Transfers that wait: stalled, refused for fees or funds, or with a nonce that others have for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from protos.wallet.v1 import broadcaster_pb2 as pb
from services.core.errors import WalletError
from tests.integration.broadcaster_rig import SENDER, Rig, bumped, make_transfer, rig
from tests.integration.running_evidence import DevCa

SUBMITTED, INCLUDED = pb.SUBMISSION_STATE_SUBMITTED, pb.SUBMISSION_STATE_INCLUDED
FINALIZED, NONCE_SPENT = pb.SUBMISSION_STATE_FINALIZED, pb.SUBMISSION_STATE_NONCE_SPENT
NOT_MINED, UNDERPRICED = pb.STALL_CAUSE_NOT_MINED, pb.STALL_CAUSE_UNDERPRICED
INSUFFICIENT_FUNDS = pb.STALL_CAUSE_INSUFFICIENT_FUNDS
_SENDER = "0x" + SENDER.hex()


@pytest.fixture
async def broadcaster(
    service_database: Callable[[str], Any], dev_ca: DevCa, start_anvil: Callable[..., str], tmp_path: Path
) -> AsyncIterator[Rig]:
    """On a chain whose blocks are mined when the test says so; final is what lies two blocks back."""
    settings = {"resend_after_s": 0.5, "stall_after_s": 1.0, "nonce_check_s": 0.2}
    async with rig(service_database, dev_ca, start_anvil(), tmp_path, **settings) as made:
        await made.rpc("evm_setAutomine", False)
        await made.start()
        await made.until_watching()
        yield made


def causes(events: list[pb.SubmissionEvent], transfer_id: str) -> list[int]:
    """What is said of its stall, without repetitions."""
    told = [event.submission.stall for event in events if event.submission.transfer_id == transfer_id]
    return [cause for at, cause in enumerate(told) if at == 0 or told[at - 1] != cause]


async def test_what_is_next_and_not_mined_is_stalled_and_a_replacement_ends_that(broadcaster: Rig) -> None:
    first, second = make_transfer("t-0", 0), make_transfer("t-1", 1)
    await broadcaster.sign(first, second)
    await broadcaster.submit(first, second)
    stalled = await broadcaster.until_status(first, lambda now: now.stall == NOT_MINED)
    assert (stalled.state, stalled.newest_tx_hash) == (SUBMITTED, first.tx_hash)
    # Not the one behind it: it waits for the first.
    assert (await broadcaster.status(second)).stall == pb.STALL_CAUSE_UNSPECIFIED
    dearer = bumped(first, 25)
    await broadcaster.sign(dearer)
    await broadcaster.submit(dearer)
    assert (await broadcaster.status(first)).stall == pb.STALL_CAUSE_UNSPECIFIED
    # Again, of the new one: whoever decides about bumps hears of it once each.
    await broadcaster.until_status(first, lambda now: now.stall == NOT_MINED)
    await broadcaster.mine(4)
    events = await broadcaster.until(FINALIZED, first, second)
    told = [(e.submission.newest_tx_hash, e.submission.transfer_id) for e in events if e.submission.stall == NOT_MINED]
    assert told == [(first.tx_hash, "t-0"), (dearer.tx_hash, "t-0")]
    assert (await broadcaster.status(first)).stall == pb.STALL_CAUSE_UNSPECIFIED


async def test_the_clock_of_the_next_begins_when_it_becomes_the_next(broadcaster: Rig) -> None:
    """A queue that moves is not stalled, however long its end has waited."""
    transfers = [make_transfer(f"t-{nonce}", nonce) for nonce in range(2)]
    await broadcaster.sign(*transfers)
    await broadcaster.submit(*transfers)
    await broadcaster.until_status(transfers[0], lambda now: now.stall == NOT_MINED)
    await broadcaster.rpc("anvil_dropTransaction", "0x" + transfers[1].tx_hash.hex())
    await broadcaster.mine()
    began = asyncio.get_running_loop().time()
    for name in broadcaster.proxies.nodes:
        # So that the second stays out of the pool and is not mined.
        broadcaster.proxies.fault(name, methods=["eth_sendRawTransaction"], status=503)
    await broadcaster.until_status(transfers[0], lambda now: now.state == INCLUDED)
    await broadcaster.until_status(transfers[1], lambda now: now.stall == NOT_MINED)
    assert asyncio.get_running_loop().time() - began > 0.8
    broadcaster.proxies.heal()
    await broadcaster.until_known(transfers[1])
    await broadcaster.mine(4)
    await broadcaster.until(FINALIZED, *transfers)


async def test_a_fee_below_the_base_fee_is_a_stall_of_its_own_and_goes_on_by_itself(broadcaster: Rig) -> None:
    await broadcaster.rpc("anvil_setNextBlockBaseFeePerGas", hex(10**12))
    await broadcaster.mine()
    transfer = make_transfer("t-0", 0)
    await broadcaster.sign(transfer)
    await broadcaster.submit(transfer)
    await broadcaster.until_status(transfer, lambda now: now.stall == UNDERPRICED)
    # Not replaced: it is sent on, and taken once the base fee has fallen.
    await broadcaster.rpc("anvil_setNextBlockBaseFeePerGas", hex(10**9))
    await broadcaster.mine()
    await broadcaster.until_known(transfer)
    await broadcaster.until_status(transfer, lambda now: now.stall == pb.STALL_CAUSE_UNSPECIFIED)
    await broadcaster.mine(4)
    events = await broadcaster.until(FINALIZED, transfer)
    assert causes(events, "t-0")[:2] == [UNDERPRICED, pb.STALL_CAUSE_UNSPECIFIED]


async def test_funds_that_lack_are_a_stall_of_their_own_and_go_on_by_themselves(broadcaster: Rig) -> None:
    await broadcaster.rpc("anvil_setBalance", _SENDER, "0x0")
    transfer = make_transfer("t-0", 0)
    await broadcaster.sign(transfer)
    await broadcaster.submit(transfer)
    await broadcaster.until_status(transfer, lambda now: now.stall == INSUFFICIENT_FUNDS)
    await asyncio.sleep(1.5)
    assert (await broadcaster.status(transfer)).stall == INSUFFICIENT_FUNDS
    await broadcaster.rpc("anvil_setBalance", _SENDER, hex(10**20))
    await broadcaster.until_known(transfer)
    await broadcaster.mine(4)
    events = await broadcaster.until(FINALIZED, transfer)
    assert causes(events, "t-0")[:2] == [INSUFFICIENT_FUNDS, pb.STALL_CAUSE_UNSPECIFIED]


async def test_a_nonce_that_another_has_for_good_ends_the_transfer(broadcaster: Rig) -> None:
    """The wallet of somebody with the same key was faster; the transfer has been replaced once, too."""
    lost = make_transfer("t-0", 0)
    await broadcaster.sign(lost)
    for name in broadcaster.proxies.nodes:
        broadcaster.proxies.fault(name, methods=["eth_sendRawTransaction"], status=503)
    await broadcaster.submit(lost)
    await broadcaster.until(SUBMITTED, lost)
    dearer = bumped(lost, 25)
    await broadcaster.sign(dearer)
    await broadcaster.submit(dearer)
    foreign = make_transfer("somebody", 0, value_wei=9)
    await broadcaster.rpc("eth_sendRawTransaction", "0x" + foreign.raw_tx.hex())
    await broadcaster.mine()
    broadcaster.proxies.heal()
    # Spent and not final: it may still be reorganised away.
    await asyncio.sleep(1.5)
    assert (await broadcaster.status(lost)).state == SUBMITTED
    await broadcaster.mine(2)
    ended = await broadcaster.until_status(lost, lambda now: now.state == NONCE_SPENT)
    assert (ended.tx_hash, ended.stall) == (dearer.tx_hash, pb.STALL_CAUSE_UNSPECIFIED)
    events = await broadcaster.until(NONCE_SPENT, lost)
    assert events[-1].submission.state == NONCE_SPENT
    # It holds no place, is not sent again and takes no replacement; the next goes on.
    entered = len(await broadcaster.entries(lost))
    await broadcaster.submit(lost, bumped(dearer, 25))
    following = make_transfer("t-1", 1)
    await broadcaster.sign(following)
    await broadcaster.submit(following)
    await broadcaster.until_known(following)
    await broadcaster.mine(4)
    await broadcaster.until(FINALIZED, following)
    assert len(await broadcaster.entries(lost)) == entered
    assert (await broadcaster.status(lost)).newest_tx_hash == dearer.tx_hash


async def test_a_transfer_that_was_mined_while_nobody_watched_does_not_stay_submitted(broadcaster: Rig) -> None:
    """The blocks were passed before the transfer was known here, and it is never sent again: regression (c).

    One node denies that it was mined, too.
    """
    transfer = make_transfer("t-0", 0)
    await broadcaster.sign(transfer)
    await broadcaster.submit(transfer)
    await broadcaster.until_known(transfer)
    await broadcaster.until(SUBMITTED, transfer)
    await broadcaster.kill()
    await broadcaster.mine(3)
    # As a takeover would find it whose predecessor had watched those blocks without this row.
    number = int(await broadcaster.rpc("eth_blockNumber"), 16)
    block = await broadcaster.rpc("eth_getBlockByNumber", hex(number), False)
    broadcaster.own_database.server.execute(
        f"DELETE FROM broadcaster.blocks; INSERT INTO broadcaster.blocks VALUES ('eip155:31337', {number}, "
        f"decode('{block['hash'][2:]}', 'hex')); UPDATE broadcaster.submissions SET next_send_at = 'infinity'"
    )
    # The nonce is spent at a final block that is watched: by nobody but us.
    await broadcaster.mine(4)

    def deny(call: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "result": None} if call["method"] == "eth_getTransactionReceipt" else answer

    broadcaster.proxies.nodes["node-a"].lie = deny
    await broadcaster.start()
    await broadcaster.until_status(transfer, lambda now: now.state >= INCLUDED)
    await broadcaster.mine(3)
    await broadcaster.until(FINALIZED, transfer)


async def test_a_spent_nonce_waits_for_the_watch_that_is_behind(broadcaster: Rig) -> None:
    """Our own transaction is final, and the watch cannot prove it yet: that is no spent nonce."""
    transfer = make_transfer("t-0", 0)
    await broadcaster.sign(transfer)
    await broadcaster.submit(transfer)
    await broadcaster.until_known(transfer)
    for name in broadcaster.proxies.nodes:
        broadcaster.proxies.fault(name, methods=["eth_getBlockReceipts"], status=500)
    await broadcaster.mine(6)
    await asyncio.sleep(2.0)
    assert (await broadcaster.status(transfer)).state == SUBMITTED
    broadcaster.proxies.heal()
    await broadcaster.until(FINALIZED, transfer)


async def test_a_closed_transfer_is_not_resent_after_a_spent_nonce_is_found_by_a_new_leader(broadcaster: Rig) -> None:
    lost = make_transfer("t-0", 0)
    await broadcaster.sign(lost)
    foreign = make_transfer("somebody", 0, value_wei=9)
    await broadcaster.rpc("eth_sendRawTransaction", "0x" + foreign.raw_tx.hex())
    await broadcaster.mine(4)
    await broadcaster.submit(lost)
    await broadcaster.until_status(lost, lambda now: now.state == SUBMITTED)
    await broadcaster.kill()
    await broadcaster.start()
    await broadcaster.until_status(lost, lambda now: now.state == NONCE_SPENT)
    with pytest.raises(WalletError, match="ALREADY_EXISTS"):
        await broadcaster.servicer.SubmitTransaction(make_transfer("t-0", 0, value_wei=5).request(), None)  # type: ignore[arg-type]
