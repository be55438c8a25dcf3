"""Velocity over a real database: no race, replay, split or clock passes a window; a void gives back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.wallet.v1 import common_pb2, signer_pb2
from services.core.abi import encode_call
from services.core.addresses import Address
from services.core.errors import Reason, WalletError
from services.runtime.db import Database
from services.runtime.settings import DatabaseSettings
from services.signer.policy import Count
from services.signer.rules import Asset, Window
from services.signer.store import NonceKey, Registration, Store
from services.signer.velocity import Candidate
from services.signer.velocity_store import Counted, Outcome, VelocityStore
from tests.integration.conftest import ServiceDatabase
from tests.integration.signer_harness import RECEIVER, Harness

LIMIT = 100
TOKEN = Address(b"\xaa" * 20)
COIN_PATH = "assets.eip155:31337/native"
POLICY = f"""
version: 1
name: bounded
rules:
  chains: {{allow: ["eip155:31337"]}}
  destinations: {{allow: any}}
  selectors: {{allow: any}}
  assets:
    eip155:31337/native:
      per_transfer: "60"
      velocity: [{{window_s: 3600, limit: "{LIMIT}"}}]
    eip155:31337/erc20:0x{TOKEN.hex()}:
      per_transfer: "60"
      velocity: [{{window_s: 3600, limit: "{LIMIT}"}}]
""".encode()


@pytest.fixture
def policy() -> bytes:
    return POLICY


async def refusal(call: object) -> WalletError:
    with pytest.raises(WalletError) as refused:
        await call  # type: ignore[misc]
    return refused.value


def counted(signer: Harness, asset: str = "native") -> int:
    total = signer.server.execute(
        f"SELECT coalesce(sum(amount), 0) FROM signer.register WHERE asset = '{asset}' AND voided_at IS NULL"
    )
    return int(total)


async def test_what_passes_is_counted_and_what_does_not_is_denied_on_the_record(signer: Harness) -> None:
    await signer.sign(signer.request("t-1", 0, value_wei=60))
    refused = await refusal(signer.sign(signer.request("t-2", 1, value_wei=41)))
    rule = f"{COIN_PATH}.velocity: 41 on top of 60 in 3600 s is above {LIMIT}"
    assert (refused.reason, refused.details["rule"]) == (Reason.POLICY_DENIED, rule)
    (entry,) = signer.log.link("t-2")
    assert entry.body["policy"]["decision"] == "deny"
    assert entry.body["policy"]["rules"] == [rule]
    # The nonce was not held, and what fits still fits.
    await signer.sign(signer.request("t-3", 1, value_wei=40))
    assert f"{COIN_PATH}.velocity: at most {LIMIT} in 3600 s" in signer.log.link("t-3")[0].body["policy"]["rules"]
    assert counted(signer) == LIMIT


async def test_a_token_counts_by_its_own_amount(signer: Harness) -> None:
    await signer.sign(signer.request("t-0", 0, value_wei=60))
    for nonce, signature in enumerate(["transfer(address,uint256)", "approve(address,uint256)"], 1):
        data = encode_call(signature, [f"0x{RECEIVER.hex()}", 45])
        await signer.sign(signer.request(f"t-{nonce}", nonce, TOKEN, 0, data))
    data = encode_call("transferFrom(address,address,uint256)", [f"0x{signer.sender.hex()}", f"0x{RECEIVER.hex()}", 11])
    refused = await refusal(signer.sign(signer.request("t-3", 3, TOKEN, 0, data)))
    assert refused.reason is Reason.POLICY_DENIED
    assert counted(signer, f"erc20:0x{TOKEN.hex()}") == 90


async def test_no_race_between_replicas_passes_a_window(replicas: tuple[Harness, Harness]) -> None:
    calls = [replicas[nonce % 2].sign(replicas[0].request(f"t-{nonce}", nonce, value_wei=30)) for nonce in range(12)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [one.reason for one in outcomes if isinstance(one, WalletError)]
    assert refused == [Reason.POLICY_DENIED] * 9
    assert counted(replicas[0]) == 90


async def test_no_split_of_batches_passes_a_window(replicas: tuple[Harness, Harness]) -> None:
    requests = [replicas[0].request(f"t-{nonce}", nonce, value_wei=7) for nonce in range(40)]
    batches = await asyncio.gather(
        *(replicas[place % 2].sign_all(*requests[place * 10 : place * 10 + 10]) for place in range(4))
    )
    signed = [one for batch in batches for one in batch if one.HasField("signed")]
    assert len(signed) == LIMIT // 7
    assert counted(replicas[0]) == len(signed) * 7


async def test_a_replay_counts_once(replicas: tuple[Harness, Harness]) -> None:
    request = replicas[0].request("t-1", 0, value_wei=60)
    # It fails before it is signed, is repeated by both replicas, alone and in a batch, and bumped.
    replicas[0].log.fail_before.add(1)
    await refusal(replicas[0].sign(request))
    await asyncio.gather(*(replica.sign(request) for replica in replicas for _ in range(3)))
    await replicas[1].sign_all(request, replicas[1].request("t-2", 1, value_wei=40))
    bump = replicas[0].request("t-1", 0, value_wei=60, fee_wei=2 * 10**9)
    bump.traceparent = request.traceparent
    await replicas[0].sign(bump)
    assert counted(replicas[0]) == LIMIT
    # Full: neither a bump nor a superseding link needs room.
    await replicas[0].sign(replicas[0].superseding("t-1:cancel", 0, "t-1", 3 * 10**9))
    assert counted(replicas[0]) == LIMIT


async def test_a_void_gives_back(signer: Harness) -> None:
    signer.log.fail_before.add(1)
    request = signer.request("t-1", 0, value_wei=60)
    await refusal(signer.sign(request))
    assert (await refusal(signer.sign(signer.request("t-2", 1, value_wei=60)))).reason is Reason.POLICY_DENIED
    await signer.void("t-1")
    await signer.sign(signer.request("t-3", 1, value_wei=60))
    assert (await refusal(signer.sign(request))).reason is Reason.LINK_VOIDED
    assert counted(signer) == 60


async def test_who_was_refused_for_the_sake_of_a_retry_is_asked_again(signer: Harness) -> None:
    request = signer.request("t-1", 0, value_wei=50)
    await signer.sign(request)
    # The retry would fill the window; it is not counted, so its neighbour fits.
    results = await signer.sign_all(request, signer.request("t-2", 1, value_wei=50))
    assert [one.WhichOneof("result") for one in results] == ["signed", "signed"]


async def test_check_policy_foresees_a_full_window_and_counts_nothing(signer: Harness) -> None:
    await signer.sign(signer.request("t-1", 0, value_wei=60))

    async def check(*amounts: int) -> list[bool]:
        checks = [
            signer_pb2.PolicyCheck(
                transfer_id=f"c-{place}",
                terms=common_pb2.Terms(
                    chain_id="eip155:31337", from_address=signer.sender, to_address=RECEIVER, value_wei=str(amount)
                ),
            )
            for place, amount in enumerate(amounts)
        ]
        reply = await signer.api.CheckPolicy(signer_pb2.CheckPolicyRequest(checks=checks), None)
        return [one.allowed for one in reply.decisions]

    assert await check(30, 20, 10) == [True, False, True]
    assert await check(40) == [True]
    assert counted(signer) == 60
    # A link that is registered has been decided, and is in no way of itself.
    await signer.sign(signer.request("c-0", 1, value_wei=40))
    assert await check(40, 1) == [True, False]


# Clocks


@dataclass
class Purse:
    """Registrations of one account, without a signer around them."""

    store: VelocityStore
    register: Store
    version: int
    number: int = 0

    async def enter(self, *amounts: int, now: datetime | None = None) -> Outcome:
        entries = []
        for amount in amounts:
            self.number += 1
            link_id = f"p-{self.number}"
            key = NonceKey(31337, Address(b"\x07" * 20), self.number)
            count = Count(Asset(31337, None), amount, COIN_PATH, (Window(3600, LIMIT),))
            registration = Registration(link_id, key, b"\x02", self.version, b"{}")
            entries.append(Counted(registration, Candidate(link_id, key.address, count)))
        return await self.store.enter(entries, now or datetime.now(UTC))


@pytest.fixture
async def purse(service_database: Callable[[str], ServiceDatabase]) -> AsyncIterator[tuple[Purse, ServiceDatabase]]:
    own = service_database("signer")
    own.server.execute(
        "INSERT INTO signer.policy_versions VALUES (1, decode(repeat('00', 32), 'hex'), 'x', 'x', 'x', now())"
    )
    database = Database(
        DatabaseSettings(
            database_url=own.environment["WALLET_DATABASE_URL"],
            database_password_file=own.environment["WALLET_DATABASE_PASSWORD_FILE"],
        )
    )
    yield Purse(VelocityStore(database), Store(database), 1), own
    await database.close()


def age(own: ServiceDatabase, by: str) -> None:
    """As if the database's clock had been set forward: everything that it stamped is older."""
    own.server.execute(
        "SET session_replication_role = replica;"
        f"UPDATE signer.register SET counted_at = counted_at - interval '{by}';"
        f"UPDATE signer.velocity SET latest_at = latest_at - interval '{by}';"
        f"UPDATE signer.velocity_windows SET start_at = start_at - interval '{by}', "
        f"settled_at = settled_at - interval '{by}'"
    )


async def test_a_window_rolls(purse: tuple[Purse, ServiceDatabase]) -> None:
    one, own = purse
    assert (await one.enter(60, 60, 40)).refused.keys() == {"p-2"}
    age(own, "59 minutes")
    assert (await one.enter(1)).refused
    age(own, "2 minutes")
    assert not (await one.enter(LIMIT)).refused


async def test_a_database_clock_that_is_set_back_opens_no_window(purse: tuple[Purse, ServiceDatabase]) -> None:
    one, own = purse
    assert not (await one.enter(90)).refused
    # The clock goes back an hour: what is stamped then has the later time, that was seen before.
    age(own, "-1 hour")
    assert not (await one.enter(10)).refused
    assert (await one.enter(1)).refused
    late = "max(counted_at) - min(counted_at) < interval '1 second'"
    assert own.server.execute(f"SELECT count(*), {late} FROM signer.register").strip() == "2|t"


async def test_one_clock_that_runs_ahead_opens_no_window(purse: tuple[Purse, ServiceDatabase]) -> None:
    one, own = purse
    assert not (await one.enter(LIMIT)).refused
    hour = timedelta(hours=2)
    # signer's own clock, then the database's.
    assert (await one.enter(1, now=datetime.now(UTC) + hour)).refused
    age(own, "2 hours")
    assert (await one.enter(1, now=datetime.now(UTC) - hour)).refused
    assert not (await one.enter(1)).refused


async def test_the_policy_that_decided_is_the_one_in_force(purse: tuple[Purse, ServiceDatabase]) -> None:
    one, own = purse
    own.server.execute(
        "INSERT INTO signer.policy_versions VALUES (2, decode(repeat('01', 32), 'hex'), 'x', 'x', 'x', now())"
    )
    outcome = await one.enter(10, 10)
    assert outcome == Outcome(set(), {})
    one.version = 2
    assert len((await one.enter(10, 10)).entered) == 2


_steps = st.lists(
    st.one_of(
        st.lists(st.integers(1, 70), min_size=1, max_size=5),  # batches that are entered at once
        st.integers(0, 30),  # a link to void, or to enter again
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_steps, min_size=1, max_size=3))
async def test_whatever_is_entered_voided_and_entered_again_the_window_holds(
    purse: tuple[Purse, ServiceDatabase], steps: Sequence[Sequence[list[int] | int]]
) -> None:
    one, own = purse
    own.server.execute(
        "SET session_replication_role = replica; DELETE FROM signer.register; DELETE FROM signer.velocity;"
        "DELETE FROM signer.velocity_windows"
    )

    async def act(own_steps: Sequence[list[int] | int]) -> None:
        for step in own_steps:
            if isinstance(step, list):
                await one.enter(*step)
            else:
                await one.register.void(f"p-{one.number - step}", "test")

    await asyncio.gather(*(act(own_steps) for own_steps in steps))
    total = own.server.execute("SELECT coalesce(sum(amount), 0) FROM signer.register WHERE voided_at IS NULL")
    assert int(total) <= LIMIT
    assert sums(own)[0] == sums(own)[1]


# Sums


def sums(own: ServiceDatabase) -> tuple[int, int]:
    """What the windows are said to hold, and what they do."""
    rows = (
        "(SELECT coalesce(sum(r.amount), 0) FROM signer.register r WHERE r.address = w.address AND r.asset = w.asset "
        "AND r.counted_at > w.start_at AND r.counted_at < w.settled_at AND r.voided_at IS NULL)"
    )
    answer = own.server.execute(
        f"SELECT coalesce(sum(spent), 0), coalesce(sum({rows}), 0) FROM signer.velocity_windows w"
    )
    said, held = answer.strip().split("|")
    return int(said), int(held)


async def test_a_void_of_what_is_in_the_sum_gives_back_and_of_what_has_left_it_nothing(
    purse: tuple[Purse, ServiceDatabase],
) -> None:
    one, own = purse
    await one.enter(40)
    age(own, "40 minutes")
    await one.enter(50)
    assert (await one.enter(11)).refused
    await one.register.void("p-1", "test")
    assert not (await one.enter(11, 39)).refused
    assert sums(own)[0] == sums(own)[1]
    age(own, "30 minutes")
    # The first would have left by now; the second is in.
    assert (await one.enter(1)).refused
    await one.register.void("p-1", "test")
    assert (await one.enter(1)).refused
    await one.register.void("p-2", "test")
    assert (await one.enter(51)).refused
    assert not (await one.enter(50)).refused
    assert sums(own)[0] == sums(own)[1]


async def test_clocks_that_go_to_and_fro_leave_the_sum_what_the_rows_are(purse: tuple[Purse, ServiceDatabase]) -> None:
    one, own = purse
    now = datetime.now(UTC)
    for _ in range(6):
        assert not (await one.enter(10)).refused
        age(own, "12 minutes")
    # Five are within the hour by this clock, however far another one has been in between.
    for other in (now + timedelta(days=1), now - timedelta(minutes=30), now - timedelta(days=1), datetime.now(UTC)):
        await one.enter(101, now=other)
        assert sums(own)[0] == sums(own)[1]
    refused = (await one.enter(61)).refused
    assert next(iter(refused.values())).startswith(f"{COIN_PATH}.velocity: 61 on top of 40 in")
    assert not (await one.enter(60)).refused
    age(own, "-3 hours")
    assert (await one.enter(1)).refused
    assert sums(own)[0] == sums(own)[1]


async def test_what_a_version_before_enters_and_voids_counts_as_well(purse: tuple[Purse, ServiceDatabase]) -> None:
    """It stamps with the latest time, and knows no sums."""
    one, own = purse
    await one.enter(10)

    def enter_as_before(number: int, amount: int) -> None:
        own.server.execute(
            "UPDATE signer.velocity SET latest_at = greatest(latest_at, clock_timestamp());"
            "INSERT INTO signer.register (link_id, attempt, chain_id, address, nonce, unsigned_tx, decision, "
            "policy_version, intent_body, asset, amount, counted_at) SELECT "
            f"'old-{number}', 1, 31337, address, {1_000 + number}, '', 'allow', 1, '', asset, {amount}, latest_at "
            "FROM signer.velocity"
        )

    enter_as_before(1, 20)
    enter_as_before(2, 30)
    assert (await one.enter(41)).refused
    enter_as_before(3, 5)
    assert (await one.enter(36)).refused
    own.server.execute("UPDATE signer.register SET voided_at = now(), intent_body = NULL WHERE link_id = 'old-2'")
    assert (await one.enter(66)).refused
    assert not (await one.enter(65)).refused
    assert sums(own)[0] == sums(own)[1]


async def test_the_service_may_move_sums_and_make_up_nothing(purse: tuple[Purse, ServiceDatabase]) -> None:
    one, _ = purse
    await one.enter(LIMIT)
    for statement in (
        "UPDATE signer.velocity_windows SET spent = 0",
        "DELETE FROM signer.velocity_windows",
        "INSERT INTO signer.velocity_windows SELECT chain_id, address, 'x', window_s, start_at, settled_at, 0 "
        "FROM signer.velocity_windows",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await one.store._database.rows(statement)
    assert (await one.enter(1)).refused


async def test_a_window_that_a_policy_begins_to_ask_for_holds_what_was_counted_before(
    purse: tuple[Purse, ServiceDatabase],
) -> None:
    one, own = purse
    await one.enter(60)
    age(own, "2 hours")
    await one.enter(30)
    key = NonceKey(31337, Address(b"\x07" * 20), 9)
    day = Count(Asset(31337, None), 11, COIN_PATH, (Window(3600, LIMIT), Window(86_400, LIMIT)))
    asked = Candidate("d-1", key.address, day)
    rule = f"{COIN_PATH}.velocity: 11 on top of 90 in 86400 s is above {LIMIT}"
    assert await one.store.foresee([asked], datetime.now(UTC)) == {"d-1": rule}
    outcome = await one.store.enter([Counted(Registration("d-1", key, b"\x02", 1, b"{}"), asked)], datetime.now(UTC))
    assert outcome.refused == {"d-1": rule}


async def test_a_call_reads_no_row_that_another_has_summed(purse: tuple[Purse, ServiceDatabase]) -> None:
    """What it costs does not grow with what the window holds."""
    one, own = purse
    for _ in range(4):
        await one.enter(*[1] * 20)
    # Were it read, the sum would have it.
    own.server.execute("SET session_replication_role = replica; UPDATE signer.register SET amount = amount + 1000")
    await one.enter(1)  # the last call's rows are read once more
    own.server.execute("SET session_replication_role = replica; UPDATE signer.register SET amount = amount - 1000")
    assert sums(own)[0] == 80 + 20 * 1000
