"""Fee bumps, superseding and the search for gaps, against a real chain and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.core.addresses import Address
from services.core.canonical import to_hex
from services.core.errors import Reason, WalletError
from services.core.transactions import Eip1559Transaction, LegacyTransaction, decode_unsigned
from services.runtime.node_settings import NodeAddress
from services.runtime.nodes import Nodes
from services.txbuilder.chain import ChainReader
from services.txbuilder.gap_store import GapStore
from services.txbuilder.gaps import PAGE, GapSearch
from services.txbuilder.replacement_store import Version
from services.txbuilder.store import Reservation
from tests.integration.txbuilder_bench import (
    ACCOUNT,
    CHAIN,
    FEE_CAP_WEI,
    OTHER,
    RICH,
    Bench,
    built,
    draft,
    running_bench,
)

ETHER = 10**18


@pytest.fixture
async def bench(service_database: Callable[[str], Any], redis_url: str, anvil: str) -> AsyncIterator[Bench]:
    async with running_bench(service_database("txbuilder").settings, redis_url, anvil) as running:
        yield running


async def reserved(bench: Bench, count: int = 1, **terms: Any) -> list[Reservation]:
    return built(await bench.builder.build([draft(f"t-{number}", **terms) for number in range(count)]))


async def bump(bench: Bench, transfer_id: str, number: int) -> bytes:
    return (await bench.replacer.bump(transfer_id, number))[1].unsigned_tx


async def found_gaps(bench: Bench) -> list[tuple[int, str]]:
    return [(gap.nonce, gap.transfer_id) for gap in (await bench.gaps.run(0)).gaps]


def fees(unsigned_tx: bytes) -> tuple[int, int]:
    tx = decode_unsigned(unsigned_tx)
    assert isinstance(tx, Eip1559Transaction)
    return tx.max_fee_per_gas_wei, tx.max_priority_fee_per_gas_wei


async def test_a_bump_raises_the_fees_and_nothing_else(bench: Bench) -> None:
    (first,) = await reserved(bench, data=b"\x01", to=OTHER)
    before = decode_unsigned(first.unsigned_tx)
    for number in (1, 2):
        after = decode_unsigned(await bump(bench, "t-0", number))
        assert isinstance(before, Eip1559Transaction)
        assert isinstance(after, Eip1559Transaction)
        assert 10 * after.max_fee_per_gas_wei >= 11 * before.max_fee_per_gas_wei
        assert 10 * after.max_priority_fee_per_gas_wei >= 11 * before.max_priority_fee_per_gas_wei
        assert replace(after, max_fee_per_gas_wei=7, max_priority_fee_per_gas_wei=7) == replace(
            before, max_fee_per_gas_wei=7, max_priority_fee_per_gas_wei=7
        )
        before = after


async def test_a_legacy_bump_stays_legacy(bench: Bench) -> None:
    (first,) = await reserved(bench, kind=0)
    before, after = decode_unsigned(first.unsigned_tx), decode_unsigned(await bump(bench, "t-0", 1))
    assert isinstance(before, LegacyTransaction)
    assert isinstance(after, LegacyTransaction)
    assert 10 * after.gas_price_wei >= 11 * before.gas_price_wei


async def test_a_chain_takes_the_bump_in_place_of_the_first(bench: Bench) -> None:
    (first,) = await reserved(bench)
    await bench.rpc("evm_setAutomine", False)
    await bench.send(first.unsigned_tx)
    second = await bench.send(await bump(bench, "t-0", 1))
    await bench.rpc("evm_mine")
    assert (await bench.rpc("eth_getTransactionReceipt", second))["status"] == "0x1"
    assert await bench.mined_nonce() == 1


async def test_a_repeated_bump_answers_the_same_bytes_also_when_fees_have_moved(bench: Bench) -> None:
    await reserved(bench)
    first = await bump(bench, "t-0", 1)
    await bench.rpc("anvil_setNextBlockBaseFeePerGas", hex(50 * 10**9))
    await bench.rpc("evm_mine")
    assert await bump(bench, "t-0", 1) == first
    answers = await asyncio.gather(*(bump(bench, "t-0", 2) for _ in range(8)))
    assert len(set(answers)) == 1
    assert await bump(bench, "t-0", 1) == first


async def test_a_bump_out_of_turn_is_refused(bench: Bench) -> None:
    await reserved(bench)
    for number in (0, 2):
        with pytest.raises(WalletError) as refused:
            await bench.replacer.bump("t-0", number)
        assert (refused.value.reason, refused.value.details["field"]) == (Reason.INVALID_REQUEST, "replacement")
    with pytest.raises(WalletError) as refused:
        await bench.replacer.bump("nobody", 1)
    assert refused.value.reason is Reason.NOT_FOUND


async def test_a_voided_transfer_is_not_bumped(bench: Bench) -> None:
    await reserved(bench)
    await bench.store.release("t-0")
    with pytest.raises(WalletError) as refused:
        await bench.replacer.bump("t-0", 1)
    assert refused.value.reason is Reason.LINK_VOIDED


async def test_the_cap_ends_bumping_and_says_what_was_needed(bench: Bench) -> None:
    await reserved(bench, fees={"max_fee_per_gas_wei": FEE_CAP_WEI * 9 // 10})
    await bump(bench, "t-0", 1)
    with pytest.raises(WalletError) as refused:
        await bench.replacer.bump("t-0", 2)
    assert refused.value.reason is Reason.FEE_CAP_REACHED
    assert refused.value.details["cap_wei"] == str(FEE_CAP_WEI)
    assert int(refused.value.details["needed_wei"]) == -(-FEE_CAP_WEI * 9 * 11 * 11 // 1000)
    # A refusal leaves nothing: the bump is built when fees allow it.
    assert len((await bench.replacements.find("t-0")).versions) == 2


async def test_a_bump_that_the_account_cannot_pay_is_refused(bench: Bench) -> None:
    (first,) = await reserved(bench, value_wei=ETHER)
    await bench.rpc("anvil_setBalance", "0x" + RICH.hex(), hex(first.cost_wei))
    with pytest.raises(WalletError) as refused:
        await bench.replacer.bump("t-0", 1)
    assert (refused.value.reason, refused.value.details["field"]) == (Reason.FEE_CAP_REACHED, "balance")
    await bench.rpc("anvil_setBalance", "0x" + RICH.hex(), hex(2 * first.cost_wei))
    await bump(bench, "t-0", 1)


async def test_a_bump_counts_against_the_balance_once(bench: Bench) -> None:
    (first,) = await reserved(bench, value_wei=ETHER)
    assert await bench.store.committed_wei(ACCOUNT, 0) == first.cost_wei
    for number in (1, 2):
        _, version = await bench.replacer.bump("t-0", number)
        assert await bench.store.committed_wei(ACCOUNT, 0) == ETHER + version.max_fee_wei


async def test_the_database_keeps_replacements_in_turn_and_unchanged(bench: Bench) -> None:
    await reserved(bench)
    await bump(bench, "t-0", 1)
    with pytest.raises(WalletError) as refused:
        await bench.replacements.replace("t-0", Version(3, b"\x02", 1), 1)
    assert refused.value.reason is Reason.NONCE_CONFLICT
    for statement in ("UPDATE txbuilder.replacements SET max_fee_wei = 0", "DELETE FROM txbuilder.replacements"):
        with pytest.raises(DBAPIError, match="permission denied"):
            async with bench.database.statement() as connection:
                await connection.execute(text(statement))


async def test_superseding_is_a_transfer_of_nothing_to_oneself_that_outbids_every_version(bench: Bench) -> None:
    await reserved(bench)
    newest = await bump(bench, "t-0", 1)
    one = await bench.replacer.supersede("t-0:cancel", ACCOUNT, 0, "t-0")
    tx = decode_unsigned(one.unsigned_tx)
    assert (tx.nonce, tx.to, tx.value_wei, tx.data, tx.gas_limit, tx.chain_id) == (0, RICH, 0, b"", 21_000, 31337)
    assert all(10 * new >= 11 * old for new, old in zip(fees(one.unsigned_tx), fees(newest), strict=True))
    assert await bench.replacer.supersede("t-0:cancel", ACCOUNT, 0, "t-0") == one
    await bench.rpc("evm_setAutomine", False)
    await bench.send(newest)
    mined = await bench.send(one.unsigned_tx)
    await bench.rpc("evm_mine")
    assert (await bench.rpc("eth_getTransactionReceipt", mined))["status"] == "0x1"


async def test_a_superseded_transfer_is_bumped_no_more_and_the_superseding_link_is(bench: Bench) -> None:
    await reserved(bench)
    one = await bench.replacer.supersede("t-0:cancel", ACCOUNT, 0, "t-0")
    with pytest.raises(WalletError) as refused:
        await bench.replacer.bump("t-0", 1)
    assert refused.value.reason is Reason.SUPERSEDED
    after = await bump(bench, "t-0:cancel", 1)
    assert fees(after) > fees(one.unsigned_tx)
    assert decode_unsigned(after).value_wei == 0


async def test_only_the_holder_of_a_nonce_is_superseded_and_only_once(bench: Bench) -> None:
    await reserved(bench, 2)

    async def refusal(link_id: str, nonce: int, supersedes: str) -> Reason:
        with pytest.raises(WalletError) as refused:
            await bench.replacer.supersede(link_id, ACCOUNT, nonce, supersedes)
        return refused.value.reason

    assert await refusal("a", 1, "t-0") is Reason.INVALID_REQUEST
    assert await refusal("a", 0, "nobody") is Reason.NOT_FOUND
    assert await refusal("a", 0, "") is Reason.NONCE_REGISTERED
    assert await refusal("a", 2, "") is Reason.INVALID_REQUEST
    await bench.replacer.supersede("a", ACCOUNT, 0, "t-0")
    assert await refusal("b", 0, "t-0") is Reason.NONCE_REGISTERED
    assert await refusal("a", 1, "t-1") is Reason.ALREADY_EXISTS
    assert await refusal("b", 0, "a") is Reason.NONCE_REGISTERED
    await bench.store.release("t-1")
    assert await refusal("b", 1, "t-1") is Reason.LINK_VOIDED


async def test_a_nonce_that_is_final_is_not_superseded(bench: Bench) -> None:
    (first, *_) = await reserved(bench, 2)
    await bench.send(first.unsigned_tx)
    await bench.rpc("anvil_mine", "0x5")
    with pytest.raises(WalletError) as refused:
        await bench.replacer.supersede("t-0:cancel", ACCOUNT, 0, "t-0")
    assert refused.value.reason is Reason.NONCE_SPENT


async def test_a_freed_nonce_that_a_gap_link_took_goes_to_no_transfer(bench: Bench) -> None:
    await reserved(bench, 3)
    await bench.store.release("t-1")
    one = await bench.replacer.supersede("gap:1", ACCOUNT, 1, "")
    assert one.nonce == 1
    assert built(await bench.builder.build([draft("t-9")]))[0].nonce == 3


async def test_a_freed_nonce_goes_to_a_transfer_or_to_a_gap_link_whoever_asks_when(bench: Bench) -> None:
    for number in range(10):
        first, _ = built(await bench.builder.build([draft(f"a-{number}"), draft(f"b-{number}")]))
        await bench.store.release(first.transfer_id)
        outcomes = await asyncio.gather(
            bench.replacer.supersede(f"gap:{number}", ACCOUNT, first.nonce, ""),
            bench.builder.build([draft(f"c-{number}")]),
            return_exceptions=True,
        )
        superseding, allocated = outcomes
        took = [] if isinstance(superseding, BaseException) else [superseding.nonce]
        if isinstance(allocated, BaseException):
            assert isinstance(allocated, WalletError)
            assert allocated.reason is Reason.NONCE_CONFLICT
        else:
            took += [one.nonce for one in built(allocated)]
        assert took.count(first.nonce) == 1
        if isinstance(superseding, BaseException):
            assert isinstance(superseding, WalletError)
            assert superseding.reason in (Reason.NONCE_REGISTERED, Reason.NONCE_CONFLICT)


async def test_a_nonce_stays_with_its_superseding_link_when_its_transfer_is_voided(bench: Bench) -> None:
    await reserved(bench, 2)
    await bench.replacer.supersede("t-0:cancel", ACCOUNT, 0, "t-0")
    await bench.store.release("t-0")
    assert built(await bench.builder.build([draft("t-9")]))[0].nonce == 2
    # And comes back once both are.
    await bench.store.release("t-0:cancel")
    assert built(await bench.builder.build([draft("t-10")]))[0].nonce == 0


async def test_a_voided_superseding_link_leaves_the_nonce_to_its_transfer(bench: Bench) -> None:
    await reserved(bench, 2)
    await bench.replacer.supersede("t-0:cancel", ACCOUNT, 0, "t-0")
    await bench.store.release("t-0:cancel")
    assert built(await bench.builder.build([draft("t-9")]))[0].nonce == 2
    await bump(bench, "t-0", 1)


async def test_gaps_are_what_stands_below_the_highest_reservation(bench: Bench) -> None:
    assert await found_gaps(bench) == []
    first, *_ = await reserved(bench, 5)
    await bench.store.release("t-2")
    assert await found_gaps(bench) == [(0, "t-0"), (1, "t-1"), (2, ""), (3, "t-3")]
    assert (await bench.gaps.run(60)).gaps == []
    await bench.replacer.supersede("gap:2", ACCOUNT, 2, "")
    await bench.replacer.supersede("t-3:cancel", ACCOUNT, 3, "t-3")
    # What is mined is none, and a superseded nonce is on its way.
    await bench.send(first.unsigned_tx)
    assert await bench.mined_nonce() == 1
    assert await found_gaps(bench) == [(1, "t-1"), (2, "gap:2")]


async def test_the_gap_of_every_account_is_found_in_one_round_of_pages(bench: Bench) -> None:
    """However many accounts there are, and wherever in their order one stands."""
    senders = [Address((0x1000 + number).to_bytes(20, "big")) for number in range(2 * PAGE + 5)]
    for sender in senders:
        await bench.rpc("anvil_setBalance", to_hex(sender), hex(10**18))
        drafts = [draft(f"t-{sender.hex()}-{number}", sender=sender) for number in range(2)]
        built(await bench.builder.build(drafts))
        await bench.store.release(f"t-{sender.hex()}-0")
    found, pages, after = [], 0, None
    while pages == 0 or after is not None:
        page = await bench.gaps.run(0, after)
        found += page.gaps
        pages, after = pages + 1, page.next
    assert [(gap.account.address, gap.nonce, gap.transfer_id) for gap in found] == [(one, 0, "") for one in senders]
    assert pages == 3


async def test_what_is_final_is_retired_and_never_looked_at_again(bench: Bench) -> None:
    first, second, _ = await reserved(bench, 3)
    await bench.store.release("t-2")
    for one in (first, second):
        await bench.send(one.unsigned_tx)
    await bench.send_foreign(2)
    await bench.rpc("anvil_mine", "0x5")
    assert await found_gaps(bench) == []
    async with bench.database.statement() as connection:
        account = (await connection.execute(text("SELECT finalized_nonce FROM txbuilder.accounts"))).scalar_one()
        free = (await connection.execute(text("SELECT count(*) FROM txbuilder.free_nonces"))).scalar_one()
    assert (account, free) == (4, 0)


async def test_an_account_whose_chain_does_not_answer_is_left_out(bench: Bench) -> None:
    await reserved(bench, 2)
    nodes = Nodes([NodeAddress(name, "http://127.0.0.1:1", CHAIN) for name in ("node-a", "node-b", "node-c")], 2)
    assert (await GapSearch(GapStore(bench.database), ChainReader(nodes, 1)).run(0)).gaps == []
    await nodes.close()
