"""Building against a real chain, PostgreSQL and Redis: nonces, fees, gas, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis
from eth_abi import encode as abi_encode
from redis.asyncio import Redis
from sqlalchemy import text

from services.core.addresses import Address
from services.core.errors import Code, Reason, WalletError
from services.core.transactions import Eip1559Transaction, Eip2930Transaction, LegacyTransaction, decode_unsigned
from services.runtime.lock import LeaseLock
from services.txbuilder.store import Reservation
from tests.integration.txbuilder_bench import ACCOUNT, OTHER, POOR, RICH, Bench, built, draft, running_bench


@pytest.fixture
async def bench(service_database: Callable[[str], Any], redis_url: str, anvil: str) -> AsyncIterator[Bench]:
    async with running_bench(service_database("txbuilder").settings, redis_url, anvil) as running:
        yield running


async def test_a_batch_takes_consecutive_nonces_and_a_repeat_answers_the_same_bytes(bench: Bench) -> None:
    drafts = [draft(f"t-{number}") for number in range(50)]
    first = built(await bench.builder.build(drafts))
    assert [one.nonce for one in first] == list(range(50))
    assert built(await bench.builder.build(drafts)) == first
    tx = decode_unsigned(first[7].unsigned_tx)
    assert isinstance(tx, Eip1559Transaction)
    assert (tx.nonce, tx.to, tx.value_wei, tx.gas_limit, tx.chain_id) == (7, OTHER, 1, 21_000, 31337)


async def build_in_the_end(bench: Bench, transfer_id: str) -> Reservation | WalletError:
    """What a caller does: start the step again while it is ABORTED."""
    for _ in range(100):
        try:
            return (await bench.builder.build([draft(transfer_id)]))[0]
        except WalletError as error:
            if error.reason.code is not Code.ABORTED:
                raise
    raise AssertionError("no nonce after 100 tries")


async def test_concurrent_builders_never_share_a_nonce(bench: Bench) -> None:
    outcomes = await asyncio.gather(*(build_in_the_end(bench, f"t-{number}") for number in range(40)))
    assert sorted(one.nonce for one in built(outcomes)) == list(range(40))


async def test_the_same_transfer_built_from_two_places_has_one_nonce(bench: Bench) -> None:
    outcomes = built(await asyncio.gather(*(build_in_the_end(bench, "t-same") for _ in range(10))))
    assert len({one.unsigned_tx for one in outcomes}) == 1


async def test_other_terms_under_the_same_id_are_refused(bench: Bench) -> None:
    await bench.builder.build([draft("t-1")])
    (refused,) = await bench.builder.build([draft("t-1", value_wei=2)])
    assert isinstance(refused, WalletError)
    assert refused.reason is Reason.ALREADY_EXISTS


async def test_a_released_nonce_is_reused_first_and_its_transfer_never_built_again(bench: Bench) -> None:
    built(await bench.builder.build([draft(f"t-{number}") for number in range(4)]))
    await bench.store.release("t-1")
    await bench.store.release("t-1")
    (refused,) = await bench.builder.build([draft("t-1")])
    assert isinstance(refused, WalletError)
    assert refused.reason is Reason.LINK_VOIDED
    after = built(await bench.builder.build([draft("t-4"), draft("t-5")]))
    assert [one.nonce for one in after] == [1, 4]


async def test_a_transfer_voided_before_it_was_built_gets_no_nonce_later(bench: Bench) -> None:
    await bench.store.release("t-late")
    (refused,) = await bench.builder.build([draft("t-late")])
    assert isinstance(refused, WalletError)
    assert refused.reason is Reason.LINK_VOIDED
    assert built(await bench.builder.build([draft("t-next")]))[0].nonce == 0


async def test_a_holder_that_was_paused_past_its_lease_cannot_write(bench: Bench) -> None:
    epoch = await bench.store.raise_epoch(ACCOUNT)
    await bench.store.raise_epoch(ACCOUNT)
    with pytest.raises(WalletError) as refused:
        await bench.store.reserve(ACCOUNT, epoch, 0, 0, lambda sequence: [])
    assert refused.value.reason is Reason.LEASE_LOST


async def test_nonces_mined_by_others_are_retired_once_they_are_final(bench: Bench) -> None:
    built(await bench.builder.build([draft("t-0")]))
    await bench.send_foreign(3)
    await bench.rpc("anvil_mine", "0x5")
    assert built(await bench.builder.build([draft("t-1")]))[0].nonce == 3


async def test_a_new_account_starts_at_the_chains_count(bench: Bench) -> None:
    await bench.send_foreign()
    assert built(await bench.builder.build([draft("t-0")]))[0].nonce == 1


async def test_each_transaction_type(bench: Bench) -> None:
    outcomes = built(await bench.builder.build([draft("t-0", kind=0), draft("t-1", kind=1), draft("t-2", kind=2)]))
    kinds = [type(decode_unsigned(one.unsigned_tx)) for one in outcomes]
    assert kinds == [LegacyTransaction, Eip2930Transaction, Eip1559Transaction]


async def test_what_cannot_be_paid_or_run_takes_no_nonce_and_spares_its_neighbours(bench: Bench) -> None:
    # PUSH0 PUSH0 REVERT, as the code of a contract.
    reverting = "0x" + "22" * 20
    await bench.rpc("anvil_setCode", reverting, "0x5f5ffd")
    outcomes = await bench.builder.build(
        [
            draft("t-0"),
            draft("t-rich", value_wei=10**30),
            draft("t-revert", to=Address(bytes.fromhex(reverting[2:])), data=b"\x01"),
            draft("t-gas", fees={"gas_limit": 10**12}),
            draft("t-cap", fees={"max_fee_per_gas_wei": 1}),
            draft("t-1"),
        ]
    )
    reasons = [one.reason if isinstance(one, WalletError) else one.nonce for one in outcomes]
    assert reasons == [
        0,
        Reason.INSUFFICIENT_FUNDS,
        Reason.EXECUTION_REVERTED,
        Reason.GAS_LIMIT_ABOVE_BLOCK,
        Reason.FEE_CAP_BELOW_BASE_FEE,
        1,
    ]


async def test_reserved_transfers_count_against_the_balance(bench: Bench) -> None:
    half = 6_000 * 10**18
    first, second = await bench.builder.build([draft("t-0", value_wei=half), draft("t-1", value_wei=half)])
    assert isinstance(first, Reservation)
    assert isinstance(second, WalletError)
    (third,) = await bench.builder.build([draft("t-2", value_wei=half)])
    assert isinstance(third, WalletError)
    assert third.reason is Reason.INSUFFICIENT_FUNDS
    assert third.details["field"] == "value_wei"


async def test_gas_of_a_call_has_its_margin(bench: Bench) -> None:
    # CALLDATASIZE PUSH0 SSTORE STOP.
    contract = "0x" + "33" * 20
    await bench.rpc("anvil_setCode", contract, "0x365f5500")
    call = draft("t-0", to=Address(bytes.fromhex(contract[2:])), data=abi_encode(["uint256"], [1]), value_wei=0)
    estimate = int(
        await bench.rpc(
            "eth_estimateGas", {"from": "0x" + RICH.hex(), "to": contract, "data": "0x" + call.terms.data.hex()}
        ),
        16,
    )
    (one,) = built(await bench.builder.build([call]))
    assert one.gas_limit == estimate + estimate // 5


async def test_a_draft_reserves_nothing(bench: Bench) -> None:
    assert (await bench.builder.draft(draft("t-denied", sender=POOR))).nonce == 0
    assert (await bench.builder.draft(draft("t-denied"))).nonce == 0
    assert built(await bench.builder.build([draft("t-0")]))[0].nonce == 0


async def test_without_redis_the_row_lock_alone_allocates(bench: Bench) -> None:
    gone = LeaseLock(Redis(port=1, socket_connect_timeout=0.2), lease_s=5, wait_s=0.5)
    builder = bench.builder_with(gone)
    assert built(await builder.build([draft("t-0")]))[0].nonce == 0


async def test_flushall_changes_nothing(bench: Bench, redis_url: str) -> None:
    built(await bench.builder.build([draft("t-0")]))
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert built(await bench.builder.build([draft("t-1")]))[0].nonce == 1


async def test_the_database_itself_refuses_a_nonce_twice(bench: Bench) -> None:
    (one,) = built(await bench.builder.build([draft("t-0")]))
    twin = Reservation("t-twin", one.nonce, one.unsigned_tx, one.terms_sha256, one.gas_limit, one.cost_wei, 1)
    epoch = await bench.store.raise_epoch(ACCOUNT)
    with pytest.raises(WalletError) as refused:
        await bench.store.reserve(ACCOUNT, epoch, 0, 0, lambda sequence: [twin])
    assert refused.value.reason is Reason.NONCE_CONFLICT


async def test_no_redis_key_names_an_address_in_clear(bench: Bench, redis_url: str) -> None:
    seen: list[str] = []
    watcher = redis.Redis.from_url(redis_url)
    with watcher.monitor() as monitor:
        await bench.builder.build([draft("t-0")])
        while True:
            command = await asyncio.to_thread(monitor.next_command)
            seen.append(str(command["command"]))
            if "nonce:" in seen[-1] and "eval" in seen[-1].lower():
                break
    assert not [line for line in seen if RICH.hex() in line]


async def test_the_service_role_cannot_forget_a_reservation(bench: Bench) -> None:
    await bench.builder.build([draft("t-0")])
    with pytest.raises(Exception, match="permission denied"):
        async with bench.database.statement() as connection:
            await connection.execute(text("DELETE FROM txbuilder.reservations"))
