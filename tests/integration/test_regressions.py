"""Defects of other people's relayers, by their symptom. Each test fails without the guard that its docstring names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.core.errors import WalletError
from services.core.transactions import decode_unsigned
from services.runtime.lock import LeaseLock
from services.txbuilder.store import NonceSequence, Reservation
from tests.fakes.keys import FakeKeys
from tests.integration.dependencies import ServiceDatabase
from tests.integration.signer_harness import Log, signer_replica
from tests.integration.txbuilder_bench import ACCOUNT, Bench, built, draft, running_bench


@pytest.fixture
async def bench(
    service_database: Callable[[str], Any], redis_url: str, start_anvil: Callable[..., str]
) -> AsyncIterator[Bench]:
    chain = start_anvil(slots_in_an_epoch=32)
    async with running_bench(service_database("txbuilder").settings, redis_url, chain) as running:
        yield running


async def tracked_nonce(bench: Bench) -> int:
    """What the account's next transfer would get."""
    return (await bench.builder.draft(draft("t-next"))).nonce


async def fill_gaps(bench: Bench) -> None:
    """What gateway does with nonces that nobody holds, once."""
    for gap in (await bench.gaps.run(0)).gaps:
        if not gap.transfer_id:
            link = await bench.replacer.supersede(f"gap:{gap.nonce}", ACCOUNT, gap.nonce, "")
            await bench.send(link.unsigned_tx)


async def test_a_tracked_nonce_ahead_of_the_chain_after_refusals_and_crashes_does_not_jam_for_good(
    bench: Bench,
) -> None:
    """(a) Guards: what nobody holds below a reservation is found, and a superseding link may take it."""
    reserved = built(await bench.builder.build([draft(f"t-{number}") for number in range(6)]))

    def die(sequence: NonceSequence) -> list[Reservation]:
        sequence.take()
        raise asyncio.CancelledError

    # A builder dies in its allocation; two transfers are refused after they had their nonces; no other transfer comes.
    epoch = await bench.store.raise_epoch(ACCOUNT)
    with pytest.raises(asyncio.CancelledError):
        await bench.store.reserve(ACCOUNT, epoch, 0, 0, die)
    for voided in ("t-1", "t-3"):
        await bench.store.release(voided)
    for one in reserved:
        if one.transfer_id not in ("t-1", "t-3"):
            await bench.send(one.unsigned_tx)
    assert await bench.mined_nonce() == 1, "the others wait behind the gap"

    await fill_gaps(bench)

    assert await bench.mined_nonce() == await tracked_nonce(bench) == 6
    (last,) = built(await bench.builder.build([draft("t-6")]))
    await bench.send(last.unsigned_tx)
    assert await bench.mined_nonce() == 7


async def test_a_tracked_nonce_ahead_of_the_chain_after_a_reorg_does_not_jam_for_good(bench: Bench) -> None:
    """(a) Guard: what nothing is recorded of is found like what was given back."""
    before = await bench.rpc("evm_snapshot")
    await bench.send_foreign(3)
    (one,) = built(await bench.builder.build([draft("t-0")]))
    assert one.nonce == 3
    # The chain takes the transactions back that the account's beginning was read from.
    await bench.rpc("evm_revert", before)
    await bench.send(one.unsigned_tx)
    assert await bench.mined_nonce() == 0

    await fill_gaps(bench)

    assert await bench.mined_nonce() == await tracked_nonce(bench) == 4


async def test_a_tracked_nonce_behind_the_chain_is_raised_to_what_is_final_on_k_nodes(bench: Bench) -> None:
    """(a), the other way: guard: nonces that others have mined are retired once they are final, upwards only."""
    built(await bench.builder.build([draft("t-0")]))
    await bench.send_foreign(3)
    assert await tracked_nonce(bench) == 1, "what is not final may be taken back"
    await bench.rpc("anvil_mine", hex(100))
    assert await tracked_nonce(bench) == 3
    (one,) = built(await bench.builder.build([draft("t-1")]))
    await bench.send(one.unsigned_tx)
    assert await bench.mined_nonce() == 4


async def test_one_transfer_is_built_under_one_nonce_and_mined_once_whoever_asks(bench: Bench) -> None:
    """(b) Guards: one reservation a transfer, by its primary key; its stored bytes answer every later call."""

    async def ask(number: int) -> list[Reservation]:
        # Each a process of its own, and no Redis.
        builder = bench.builder_with(LeaseLock(Redis(port=1), wait_s=0.1))
        for _ in range(200):
            try:
                return built(await builder.build([draft("t-same", value_wei=777), draft(f"t-{number}")]))
            except WalletError:
                continue
        raise AssertionError("nothing was built in 200 tries")

    # Workers that all think that the transfer is theirs; some are gone before they have their answer.
    asking = [asyncio.create_task(ask(number)) for number in range(8)]
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    for lost in asking[::3]:
        lost.cancel()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    answers = [one for one in outcomes if not isinstance(one, BaseException)]
    answers.append(await ask(99))
    versions = {one.unsigned_tx for answer in answers for one in answer if one.transfer_id == "t-same"}
    assert len(versions) == 1

    everything = {one.unsigned_tx for answer in answers for one in answer}
    for unsigned_tx in sorted(everything, key=lambda one: decode_unsigned(one).nonce):
        await bench.send(unsigned_tx)
    await fill_gaps(bench)
    blocks = range(1, int(await bench.rpc("eth_blockNumber"), 16) + 1)
    mined = [
        int(transaction["value"], 16)
        for number in blocks
        for transaction in (await bench.rpc("eth_getBlockByNumber", hex(number), True))["transactions"]
    ]
    assert mined.count(777) == 1


async def test_a_signer_signs_one_transfer_under_one_nonce_whatever_it_is_asked(
    service_database: Callable[[str], ServiceDatabase], tmp_path: Path
) -> None:
    """(b) Guard: a link's further transactions are those of its nonce, and nothing else but their fees is new."""
    keys = FakeKeys()
    async with signer_replica(service_database("signer"), tmp_path, Log(), keys, keys.add("k1")) as signer:
        first = signer.request("t-0", 0)
        signed = await signer.sign(first)
        # A builder that has forgotten the transfer, or a second one, gives it another nonce.
        with pytest.raises(WalletError):
            await signer.sign(signer.request("t-0", 1))
        assert await signer.sign(first) == signed
        # And both at once: one of them is signed.
        outcomes = await asyncio.gather(
            *(signer.sign(signer.request("t-1", nonce)) for nonce in (1, 2, 3)), return_exceptions=True
        )
        assert len([one for one in outcomes if not isinstance(one, BaseException)]) == 1
        assert len(set(signer.asked())) == 2, "the token was asked for one transaction of each transfer"
        nonces = await signer.database.rows("SELECT count(DISTINCT nonce) FROM signer.register GROUP BY link_id")
        assert [row[0] for row in nonces] == [1, 1]
