"""Reorgs of 1 to 64 blocks, where final is what lies 64 blocks back; and those that go below what is final."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from protos.wallet.v1 import broadcaster_pb2 as pb
from services.core.errors import WalletError
from tests.integration.broadcaster_rig import CHAIN_ID, Rig, Transfer, bumped, eventually, make_transfer, rig, verify
from tests.integration.running_evidence import DevCa

SUBMITTED, INCLUDED = pb.SUBMISSION_STATE_SUBMITTED, pb.SUBMISSION_STATE_INCLUDED
SAFE, FINALIZED = pb.SUBMISSION_STATE_SAFE, pb.SUBMISSION_STATE_FINALIZED
_FINAL_AFTER = 64  # two epochs of 32 slots


@pytest.fixture
def start_rig(
    service_database: Callable[[str], Any], dev_ca: DevCa, start_anvil: Callable[..., str], tmp_path: Path
) -> Callable[[int], Any]:
    """A broadcaster on a chain whose blocks are mined when the test says so."""
    return lambda slots_in_an_epoch: rig(
        service_database,
        dev_ca,
        start_anvil(slots_in_an_epoch=slots_in_an_epoch),
        tmp_path,
        resend_after_s=1.0,
        nonce_check_s=0.5,
    )


async def head(made: Rig) -> int:
    return int(await made.rpc("eth_blockNumber"), 16)


async def until_watched(made: Rig, number: int) -> None:
    async def watched() -> bool:
        return bool(await made.rows(f"SELECT 1 FROM broadcaster.blocks WHERE number = {number}"))

    await eventually(watched, 60.0)


async def begin(made: Rig) -> None:
    await made.rpc("evm_setAutomine", False)
    await made.start()
    await made.until_watching()
    await made.mine(_FINAL_AFTER + 6)
    await until_watched(made, await head(made))


async def submitted(made: Rig, transfer: Transfer) -> None:
    await made.sign(transfer)
    await made.submit(transfer)
    await made.until_known(transfer)


def states(events: list[pb.SubmissionEvent], transfer: Transfer) -> list[int]:
    return [event.submission.state for event in events if event.submission.transfer_id == transfer.transfer_id]


@pytest.mark.parametrize("depth", [1, 2, 7, 31, 32, 63, 64])
async def test_what_a_reorg_drops_is_revoked_sent_again_and_included_again(
    start_rig: Callable[[int], Any], depth: int, tmp_path: Path
) -> None:
    async with start_rig(32) as made:
        await begin(made)
        # In the oldest block that will be dropped, in the newest, and one that was replaced before it was mined.
        oldest, newest, replaced = (make_transfer(f"t-{nonce}", nonce) for nonce in range(3))
        await submitted(made, oldest)
        if depth > 1:
            await made.mine(depth - 1)
            await made.until_status(oldest, lambda now: now.state == INCLUDED)
        await submitted(made, newest)
        await submitted(made, replaced)
        dearer = bumped(replaced, 25)
        await submitted(made, dearer)
        await made.mine()
        everything = (oldest, newest, replaced)
        for transfer in everything:
            await made.until_status(transfer, lambda now: now.state == INCLUDED)
        top = await head(made)
        assert (await made.status(oldest)).block_number == top - depth + 1
        await made.rpc("anvil_reorg", depth, [])
        for transfer in (oldest, newest, dearer):
            await made.until_known(transfer)
            await made.until_status(transfer, lambda now: now.state == SUBMITTED)
        await made.mine()
        included = [await made.until_status(transfer, lambda now: now.state == INCLUDED) for transfer in everything]
        assert {one.block_number for one in included} == {await head(made)}
        # Final when the nodes say so: not a block before.
        await made.mine(_FINAL_AFTER - 1)
        await until_watched(made, await head(made))
        await asyncio.sleep(0.5)
        for transfer in everything:
            assert (await made.status(transfer)).state in (INCLUDED, SAFE)
        await made.mine()
        events = await made.until(FINALIZED, *everything)
        for transfer in everything:
            # One turn back, and the final state once, at the end.
            seen = states(events, transfer)
            assert seen[-1] == FINALIZED
            assert seen.count(FINALIZED) == 1
            back = seen.index(SUBMITTED, seen.index(INCLUDED))
            assert INCLUDED in seen[back:]
            ids = [entry_id for entry_id, _ in await made.entries(transfer)]
            assert ids.count("revocation:1") == 1
            assert "revocation:2" not in ids
            await verify(made, transfer, tmp_path)


async def test_a_reorg_that_leaves_the_chain_shorter_is_seen_too(start_rig: Callable[[int], Any]) -> None:
    async with start_rig(32) as made:
        await begin(made)
        transfer = make_transfer("t-0", 0)
        await submitted(made, transfer)
        await made.mine(4)
        await made.until_status(transfer, lambda now: now.state == INCLUDED)
        await until_watched(made, await head(made))
        await made.rpc("anvil_rollback", 6)
        await made.mine(2)
        await made.until_status(transfer, lambda now: now.state == SUBMITTED)
        await made.until_known(transfer)
        await made.mine()
        await made.until_status(transfer, lambda now: now.state == INCLUDED)


async def test_a_reorg_while_nobody_watches_is_found_by_the_next_leader(start_rig: Callable[[int], Any]) -> None:
    async with start_rig(32) as made:
        await begin(made)
        transfer = make_transfer("t-0", 0)
        await submitted(made, transfer)
        await made.mine(3)
        await made.until_status(transfer, lambda now: now.state == INCLUDED)
        await until_watched(made, await head(made))
        await made.kill()
        await made.rpc("anvil_reorg", 20, [])
        await made.mine(5)
        await made.start()
        await made.until_status(transfer, lambda now: now.state == SUBMITTED)
        await made.until_known(transfer)
        await made.mine()
        await made.until_status(transfer, lambda now: now.state == INCLUDED)


@pytest.fixture
async def broken(start_rig: Callable[[int], Any]) -> AsyncIterator[tuple[Rig, Transfer, Transfer]]:
    """A chain that has dropped a final transfer and one that was included."""
    async with start_rig(1) as made:
        await made.rpc("evm_setAutomine", False)
        await made.start()
        await made.until_watching()
        final, included = make_transfer("t-0", 0), make_transfer("t-1", 1)
        await submitted(made, final)
        await made.mine(6)
        await made.until(FINALIZED, final)
        await submitted(made, included)
        await made.mine()
        await made.until_status(included, lambda now: now.state == INCLUDED)
        await until_watched(made, await head(made))
        await made.rpc("anvil_reorg", 7, [])
        await made.mine()

        async def is_broken() -> bool:
            return bool((await status(made)).broken_chains)

        await eventually(is_broken)
        yield made, final, included


async def status(made: Rig) -> pb.BroadcasterStatus:
    return await made.servicer.GetBroadcasterStatus(pb.GetBroadcasterStatusRequest(), None)  # type: ignore[arg-type]


async def test_a_reorg_below_what_is_final_breaks_the_chain(
    broken: tuple[Rig, Transfer, Transfer], caplog: pytest.LogCaptureFixture
) -> None:
    made, final, included = broken
    (chain,) = (await status(made)).broken_chains
    assert chain.chain_id == CHAIN_ID
    assert "final" in chain.cause
    assert any(record.levelname == "CRITICAL" for record in caplog.get_records("setup"))
    # What is final stays; of the other nothing more is claimed or done.
    assert (await made.status(final)).state == FINALIZED
    assert (await made.status(included)).state == INCLUDED
    entered = len(await made.entries(included))
    refused = make_transfer("t-2", 2)
    await made.sign(refused)
    with pytest.raises(WalletError, match="CHAIN_BROKEN"):
        await made.servicer.SubmitTransaction(refused.request(), None)  # type: ignore[arg-type]
    with pytest.raises(WalletError, match="CHAIN_BROKEN"):
        await made.servicer.SubmitTransaction(bumped(included, 25).request(), None)  # type: ignore[arg-type]
    # What was taken before is still answered.
    await made.submit(final, included)
    # It outlives the process.
    await made.kill()
    await made.start()
    await made.mine(3)
    await asyncio.sleep(1.5)
    assert (await status(made)).broken_chains
    assert len(await made.entries(included)) == entered
    assert await made.rpc("eth_getTransactionByHash", "0x" + included.tx_hash.hex()) is None


async def test_an_operator_mends_it_and_the_rest_goes_on(broken: tuple[Rig, Transfer, Transfer]) -> None:
    made, final, included = broken
    assert await mend(made, "eip155:1") == 1
    assert await mend(made, CHAIN_ID) == 0
    assert await mend(made, CHAIN_ID) == 1
    assert not (await status(made)).broken_chains
    await made.until_status(included, lambda now: now.state == SUBMITTED)
    # Whoever holds the bytes of the final one may have it mined again; here it is the test.
    await made.rpc("eth_sendRawTransaction", "0x" + final.raw_tx.hex())
    await made.until_known(included)
    await made.mine(6)
    await made.until(FINALIZED, included)
    assert (await made.status(final)).state == FINALIZED
    later = make_transfer("t-2", 2)
    await submitted(made, later)
    await made.mine(4)
    await made.until(FINALIZED, later)


async def mend(made: Rig, chain_id: str) -> int | None:
    environment = {
        "PATH": os.defpath,
        "WALLET_NODES_FILE": str(made.settings.nodes_file),
        **made.own_database.environment,
    }
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.broadcaster", "mend", chain_id),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    await command.communicate()
    return command.returncode
