"""Several transactions of one transfer: the newest is sent, all are watched, whichever is mined counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from protos.wallet.v1 import broadcaster_pb2 as pb
from services.core.canonical import from_hex
from services.core.errors import WalletError
from services.core.transactions import tx_hash
from tests.integration.broadcaster_rig import Rig, Transfer, bumped, make_transfer, rig, verify
from tests.integration.running_evidence import DevCa

SUBMITTED, INCLUDED, FINALIZED = (
    pb.SUBMISSION_STATE_SUBMITTED,
    pb.SUBMISSION_STATE_INCLUDED,
    pb.SUBMISSION_STATE_FINALIZED,
)


@pytest.fixture
async def broadcaster(
    service_database: Callable[[str], Any], dev_ca: DevCa, start_anvil: Callable[..., str], tmp_path: Path
) -> AsyncIterator[Rig]:
    """On a chain whose blocks are mined when the test says so."""
    async with rig(service_database, dev_ca, start_anvil(), tmp_path, resend_after_s=0.5) as made:
        await made.rpc("evm_setAutomine", False)
        await made.start()
        await made.until_watching()
        yield made


async def submitted(broadcaster: Rig, transfer: Transfer) -> Transfer:
    await broadcaster.sign(transfer)
    await broadcaster.submit(transfer)
    await broadcaster.until_status(
        transfer, lambda now: now.state == SUBMITTED and now.newest_tx_hash == transfer.tx_hash
    )
    await broadcaster.until_known(transfer)
    return transfer


async def requested(broadcaster: Rig, transfer: Transfer) -> list[tuple[str, bytes]]:
    """(entry id, transaction hash) of each request of the link, in its order."""
    return [
        (entry_id, tx_hash(from_hex(from_hex(body["body"]).decode().split('"params":["')[1].split('"')[0])))
        for entry_id, body in await broadcaster.entries(transfer)
        if entry_id.startswith("request")
    ]


async def test_the_newest_is_sent_and_mined_and_the_link_proves_both(broadcaster: Rig, tmp_path: Path) -> None:
    first = await submitted(broadcaster, make_transfer("t-1", 0))
    second = await submitted(broadcaster, bumped(first, 25))
    await broadcaster.mine()
    shown = await broadcaster.until_status(second, lambda now: now.state == INCLUDED)
    assert (shown.tx_hash, shown.newest_tx_hash) == (second.tx_hash, second.tx_hash)
    await broadcaster.mine(4)
    await broadcaster.until(FINALIZED, second)
    sent = await requested(broadcaster, first)
    # Attempts rise along the link, whichever transaction they are of.
    assert [int(entry_id.split(":")[2]) for entry_id, _ in sent] == sorted(
        int(entry_id.split(":")[2]) for entry_id, _ in sent
    )
    hashes = [hash_ for _, hash_ in sent]
    assert set(hashes) == {first.tx_hash, second.tx_hash}
    newest_from = hashes.index(second.tx_hash)
    assert first.tx_hash not in hashes[newest_from:]
    await verify(broadcaster, first, tmp_path)


async def test_an_older_one_that_is_mined_counts(broadcaster: Rig, tmp_path: Path) -> None:
    """The nodes never get the newest; a block holds the one before."""
    first = await submitted(broadcaster, make_transfer("t-1", 0))
    second = bumped(first, 25)
    await broadcaster.sign(second)
    for name in broadcaster.proxies.nodes:
        broadcaster.proxies.fault(name, methods=["eth_sendRawTransaction"], status=503)
    await broadcaster.submit(second)
    await broadcaster.mine()
    shown = await broadcaster.until_status(first, lambda now: now.state == INCLUDED)
    assert (shown.tx_hash, shown.newest_tx_hash) == (first.tx_hash, second.tx_hash)
    broadcaster.proxies.heal()
    await broadcaster.mine(4)
    events = await broadcaster.until(FINALIZED, first)
    assert events[-1].submission.tx_hash == first.tx_hash
    await verify(broadcaster, first, tmp_path)


async def test_an_older_one_that_no_node_has_answered_is_asked_for_again_once_it_is_mined(
    broadcaster: Rig, tmp_path: Path
) -> None:
    """Its request reached the chain and the answers were lost: the log takes no inclusion without one."""
    for name in broadcaster.proxies.nodes:
        broadcaster.proxies.fault(name, methods=["eth_sendRawTransaction"], drop="response")
    first = make_transfer("t-1", 0)
    await broadcaster.sign(first)
    await broadcaster.submit(first)
    await broadcaster.until_known(first)
    await broadcaster.until_entered(first, "response:node-a:1")
    for name in broadcaster.proxies.nodes:
        broadcaster.proxies.fault(name, methods=["eth_sendRawTransaction"], drop="request")
    second = bumped(first, 25)
    await broadcaster.sign(second)
    await broadcaster.submit(second)
    await broadcaster.mine()
    await broadcaster.until_status(first, lambda now: now.tx_hash == first.tx_hash)
    broadcaster.proxies.heal()
    await broadcaster.mine(4)
    await broadcaster.until(FINALIZED, first)
    await verify(broadcaster, first, tmp_path)


async def test_a_reorg_sends_the_newest_again(
    service_database: Callable[[str], Any], dev_ca: DevCa, start_anvil: Callable[..., str], tmp_path: Path
) -> None:
    chain = start_anvil(slots_in_an_epoch=32)
    async with rig(service_database, dev_ca, chain, tmp_path, resend_after_s=0.5) as made:
        await made.rpc("evm_setAutomine", False)
        await made.start()
        await made.until_watching()
        first = await submitted(made, make_transfer("t-1", 0))
        second = bumped(first, 25)
        await made.sign(second)
        await made.mine()
        await made.until_status(first, lambda now: now.state == INCLUDED)
        # It comes too late, and waits behind the one that is mined.
        await made.submit(second)
        shown = await made.status(first)
        assert (shown.state, shown.tx_hash, shown.newest_tx_hash) == (INCLUDED, first.tx_hash, second.tx_hash)
        await made.rpc("anvil_reorg", 1, [])
        await made.until_known(second)
        shown = await made.until_status(first, lambda now: now.state == SUBMITTED)
        assert (shown.tx_hash, shown.newest_tx_hash) == (second.tx_hash, second.tx_hash)
        await made.mine()
        shown = await made.until_status(first, lambda now: now.state == INCLUDED)
        assert shown.tx_hash == second.tx_hash


async def test_what_is_no_replacement_is_refused_and_a_repetition_changes_nothing(broadcaster: Rig) -> None:
    first = await submitted(broadcaster, make_transfer("t-1", 0))
    second = await submitted(broadcaster, bumped(first, 25))
    # The first again, late: it does not come back.
    await broadcaster.submit(first, second)
    shown = await broadcaster.status(first)
    assert (shown.tx_hash, shown.newest_tx_hash) == (second.tx_hash, second.tx_hash)
    for other in (make_transfer("t-1", 0, value_wei=2), make_transfer("t-1", 1), make_transfer("t-1", 0, data=b"x")):
        with pytest.raises(WalletError, match="ALREADY_EXISTS"):
            await broadcaster.servicer.SubmitTransaction(other.request(), None)  # type: ignore[arg-type]
    stolen = make_transfer("t-2", 0)
    assert stolen.tx_hash == first.tx_hash
    with pytest.raises(WalletError, match="ALREADY_EXISTS"):
        await broadcaster.servicer.SubmitTransaction(stolen.request(), None)  # type: ignore[arg-type]
    await broadcaster.mine(3)
    await broadcaster.until(FINALIZED, first)
    await broadcaster.submit(first, second, bumped(second, 25))
    assert (await broadcaster.status(first)).newest_tx_hash == second.tx_hash


async def test_a_crash_between_two_transactions_of_a_transfer_loses_neither(broadcaster: Rig, tmp_path: Path) -> None:
    first = await submitted(broadcaster, make_transfer("t-1", 0))
    second = bumped(first, 25)
    await broadcaster.sign(second)
    reached = asyncio.Event()

    def cut(request: Any) -> bool:
        # The request of the second is in the log, and was not sent.
        if any(entry.kind == "request" for entry in request.entries):
            reached.set()
            return True
        return False

    broadcaster.evidence.cut_after = cut
    await broadcaster.submit(second)
    async with asyncio.timeout(20):
        await reached.wait()
    await broadcaster.kill()
    broadcaster.evidence.cut_after = lambda request: False
    await broadcaster.start()
    await broadcaster.until_known(second)
    await broadcaster.mine(4)
    await broadcaster.until(FINALIZED, second)
    await verify(broadcaster, second, tmp_path)
