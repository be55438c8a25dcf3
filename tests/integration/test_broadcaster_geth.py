"""The rules of a real pool, geth's, which anvil does not have: each refusal is understood, end to end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protos.wallet.v1 import broadcaster_pb2 as pb
from services.core.canonical import from_hex
from tests.integration.broadcaster_rig import Rig, Transfer, bumped, eventually, make_transfer, rig
from tests.integration.geth_chain import MINED_FROM_TIP_WEI, GethChain
from tests.integration.running_evidence import DevCa

SUBMITTED = pb.SUBMISSION_STATE_SUBMITTED
NONE, NOT_MINED = pb.STALL_CAUSE_UNSPECIFIED, pb.STALL_CAUSE_NOT_MINED
UNDERPRICED, INSUFFICIENT_FUNDS = pb.STALL_CAUSE_UNDERPRICED, pb.STALL_CAUSE_INSUFFICIENT_FUNDS


@pytest.fixture
async def broadcaster(
    service_database: Callable[[str], Any], dev_ca: DevCa, dependencies: Any, tmp_path: Path
) -> AsyncIterator[Rig]:
    chain = GethChain(tmp_path / "geth", tmp_path / "geth.log", dependencies.ports.free())
    dependencies.launch(chain.spec)
    try:
        settings = {"resend_after_s": 0.5, "stall_after_s": 2.0, "nonce_check_s": 0.25}
        async with rig(service_database, dev_ca, chain.url, tmp_path, **settings) as made:
            await made.start()
            await made.until_watching()
            yield made
    finally:
        dependencies.end(chain.spec.name)


def is_mined(shown: pb.Submission) -> bool:
    # geth's development chain calls every block safe.
    return shown.state in (pb.SUBMISSION_STATE_INCLUDED, pb.SUBMISSION_STATE_SAFE, pb.SUBMISSION_STATE_FINALIZED)


async def hand_over(broadcaster: Rig, *transfers: Transfer) -> None:
    await broadcaster.sign(*transfers)
    await broadcaster.submit(*transfers)


async def said(broadcaster: Rig, transfer: Transfer) -> list[str]:
    """The errors that nodes answered, as the log has them."""
    bodies = [body for entry_id, body in await broadcaster.entries(transfer) if entry_id.startswith("response")]
    answers = [json.loads(from_hex(body["body"])) for body in bodies if body["body"] != "0x"]
    return [answer["error"]["message"] for answer in answers if "error" in answer]


async def until_said(broadcaster: Rig, transfer: Transfer, words: str) -> None:
    async def has_said() -> bool:
        return any(words in one for one in await said(broadcaster, transfer))

    await eventually(has_said)


async def test_nine_percent_more_is_refused_ten_are_taken_and_the_dearest_is_mined(broadcaster: Rig) -> None:
    first = make_transfer("t-0", 0)
    await hand_over(broadcaster, first)
    await broadcaster.until_status(first, lambda now: now.stall == NOT_MINED)
    too_little = bumped(first, 9)
    await hand_over(broadcaster, too_little)
    shown = await broadcaster.until_status(first, lambda now: now.stall == UNDERPRICED)
    assert shown.newest_tx_hash == too_little.tx_hash
    assert await broadcaster.rpc("eth_getTransactionByHash", "0x" + too_little.tx_hash.hex()) is None
    assert "replacement transaction underpriced" in await said(broadcaster, first)
    # By the rule, of what the pool holds.
    enough = replace(bumped(first, 10), version=2)
    await hand_over(broadcaster, enough)
    await broadcaster.until_known(enough)
    assert (await broadcaster.status(first)).stall == NONE
    assert await broadcaster.rpc("eth_getTransactionByHash", "0x" + first.tx_hash.hex()) is None
    await broadcaster.until_status(first, lambda now: now.stall == NOT_MINED)
    mined = bumped(enough, 400)
    await hand_over(broadcaster, mined)
    shown = await broadcaster.until_status(first, is_mined)
    assert (shown.tx_hash, shown.stall) == (mined.tx_hash, NONE)


async def test_already_known_is_as_good_as_taken(broadcaster: Rig) -> None:
    transfer = make_transfer("t-0", 0)
    await hand_over(broadcaster, transfer)
    await until_said(broadcaster, transfer, "already known")
    (row,) = await broadcaster.rows("SELECT answered_nodes, silent_nodes FROM broadcaster.submissions")
    assert (sorted(row.answered_nodes), row.silent_nodes) == (["node-a", "node-b"], [])
    assert (await broadcaster.status(transfer)).stall in (NONE, NOT_MINED)


async def test_nonce_too_low_is_looked_into_and_ours_is_found(broadcaster: Rig) -> None:
    transfer = make_transfer("t-0", 0, tip_wei=MINED_FROM_TIP_WEI)
    await broadcaster.rpc("eth_sendRawTransaction", "0x" + transfer.raw_tx.hex())
    await broadcaster.until_mined(transfer)
    await hand_over(broadcaster, transfer)
    await broadcaster.until_status(transfer, is_mined)
    assert any(one.startswith("nonce too low: next nonce 1") for one in await said(broadcaster, transfer))


async def test_nonce_too_low_by_another_is_waited_for_until_it_is_final(broadcaster: Rig) -> None:
    foreign = make_transfer("somebody", 0, value_wei=9, tip_wei=MINED_FROM_TIP_WEI)
    await broadcaster.rpc("eth_sendRawTransaction", "0x" + foreign.raw_tx.hex())
    await broadcaster.until_mined(foreign)
    transfer = make_transfer("t-0", 0)
    await hand_over(broadcaster, transfer)
    await until_said(broadcaster, transfer, "nonce too low")
    await asyncio.sleep(1.5)
    shown = await broadcaster.status(transfer)
    assert (shown.state, shown.stall) == (SUBMITTED, NONE)
    # geth's development chain is final every 32 blocks.
    await broadcaster.until_status(transfer, lambda now: now.state == pb.SUBMISSION_STATE_NONCE_SPENT, timeout_s=60)


async def test_insufficient_funds_are_a_stall_that_no_bump_answers(broadcaster: Rig) -> None:
    transfer = make_transfer("t-0", 0, value_wei=10**24)
    await hand_over(broadcaster, transfer)
    await broadcaster.until_status(transfer, lambda now: now.stall == INSUFFICIENT_FUNDS)
    assert any(
        one.startswith("insufficient funds for gas * price + value") for one in await said(broadcaster, transfer)
    )
    await asyncio.sleep(2.5)
    assert (await broadcaster.status(transfer)).stall == INSUFFICIENT_FUNDS


async def test_a_floor_of_the_pool_above_the_tip_is_underpriced(broadcaster: Rig) -> None:
    await broadcaster.rpc("miner_setGasPrice", hex(MINED_FROM_TIP_WEI))
    transfer = make_transfer("t-0", 0)
    await hand_over(broadcaster, transfer)
    await broadcaster.until_status(transfer, lambda now: now.stall == UNDERPRICED)
    await broadcaster.rpc("miner_setGasPrice", hex(1))
    await broadcaster.until_status(transfer, is_mined)


@pytest.mark.parametrize(
    ("change", "words", "meaning"),
    [
        ({"gas_limit": 20_000}, "intrinsic gas too low", "gas too low"),
        ({"gas_limit": 40_000_000, "fee_wei": 2 * 10**9}, "exceeds block gas limit", "gas above block"),
        ({"gas_limit": 20_000_000, "fee_wei": 10**11}, "exceeds the configured cap", "fee above cap"),
    ],
)
async def test_what_no_bump_mends_is_told_and_is_no_stall(
    broadcaster: Rig, caplog: pytest.LogCaptureFixture, change: dict[str, int], words: str, meaning: str
) -> None:
    transfer = make_transfer("t-0", 0, **change)
    await hand_over(broadcaster, transfer)
    await until_said(broadcaster, transfer, words)
    # Longer than a stall takes.
    await asyncio.sleep(4.0)
    shown = await broadcaster.status(transfer)
    assert (shown.state, shown.stall) == (SUBMITTED, NONE)
    assert {getattr(record, "meaning", meaning) for record in caplog.records} == {meaning}
