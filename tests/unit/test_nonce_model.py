"""The nonce theorem, tried: actors that die and overtake each other anywhere, a chain that reorganises, invariants
after every step. And each guard taken away in turn: something must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.unit.nonce_model import GUARDS, Again, Refused, Steps, Transfer, World

_ACTORS = ("carry", "carry", "carry", "replace", "cancel", "fail", "mismatch")
_STEPS = st.one_of(st.integers(0, 8), st.just(30))
_MOST_AT_ONCE = 4
_MOST_TRANSFERS = 4
_MOST_FOREIGN = 2


class Nonces(RuleBasedStateMachine):
    without: ClassVar[tuple[str, ...]] = ()
    signer_alone: ClassVar[bool] = False
    gateway_is_wrong: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.without, signer_alone=self.signer_alone)
        self.running: list[Steps[None]] = []
        self.count = self.foreign = 0

    def _link(self, place: int) -> str:
        links = sorted(self.world.transfers)
        return links[place % len(links)]

    # -- work comes

    @initialize(
        foreign=st.integers(0, 2), stages=st.lists(st.tuples(st.sampled_from(_ACTORS), _STEPS), min_size=2, max_size=3)
    )
    def begin_somewhere(self, foreign: int, stages: list[tuple[str, int]]) -> None:
        for _ in range(foreign):
            self.mine_foreign()
        for number, (actor, steps) in enumerate(stages):
            self.accept()
            self.begin(actor, number, steps)

    @precondition(lambda self: self.count < _MOST_TRANSFERS)
    @rule()
    def accept(self) -> None:
        link = f"t{self.count}"
        self.count += 1
        self.world.transfers[link] = Transfer(link)

    @precondition(
        lambda self: self.gateway_is_wrong and self.world.reservations and "rogue" not in self.world.transfers
    )
    @rule(place=st.integers(0, 3), unheld=st.booleans(), steps=_STEPS)
    def supersede_unasked(self, place: int, unheld: bool, steps: int) -> None:
        """A gateway that is wrong: it supersedes what nobody wants superseded."""
        row = self.world.reservations[place % len(self.world.reservations)]
        nonce = row.nonce if row.nonce is not None else place
        self.world.is_gateway_wrong = True
        self.world.transfers["rogue"] = Transfer("rogue", supersedes="" if unheld else row.link, nonce=nonce)
        self.running.append(self.world.carry("rogue"))
        self._advance(len(self.running) - 1, steps)

    # -- actors begin, take some steps, and die

    @precondition(lambda self: self.world.transfers and len(self.running) < _MOST_AT_ONCE)
    @rule(actor=st.sampled_from(_ACTORS), place=st.integers(0, 3), steps=_STEPS)
    def begin(self, actor: str, place: int, steps: int) -> None:
        link = self._link(place)
        if not self.world.transfers[link].is_closed:
            self.running.append(getattr(self.world, actor)(link))
            self._advance(len(self.running) - 1, steps)

    @precondition(lambda self: len(self.running) < _MOST_AT_ONCE)
    @rule(steps=_STEPS)
    def begin_repair(self, steps: int) -> None:
        self.running.append(self.world.repair())
        self._advance(len(self.running) - 1, steps)

    @precondition(lambda self: self.running)
    @rule(place=st.integers(0, 3), steps=_STEPS)
    def go_on(self, place: int, steps: int) -> None:
        self._advance(place % len(self.running), steps)

    @precondition(lambda self: self.running)
    @rule(place=st.integers(0, 3))
    def die(self, place: int) -> None:
        self.running.pop(place % len(self.running)).close()

    def _advance(self, place: int, steps: int) -> None:
        for _ in range(steps):
            try:
                next(self.running[place])
            except (StopIteration, Again, Refused):
                self.running.pop(place)
                return
            self.world.check()

    # -- the chain goes on, or back

    @rule(place=st.integers(0, 3))
    def mine(self, place: int) -> None:
        self.world.mine(lambda candidates: candidates[place % len(candidates)])

    @precondition(lambda self: self.foreign < _MOST_FOREIGN)
    @rule()
    def mine_foreign(self) -> None:
        self.foreign += 1
        self.world.mine_foreign()

    @rule(depth=st.integers(1, 4))
    def reorganise(self, depth: int) -> None:
        self.world.reorganise(depth)

    @rule(count=st.integers(1, 3))
    def finalize(self, count: int) -> None:
        self.world.finalize(count)

    @rule()
    def observe(self) -> None:
        self.world.observe()

    @invariant()
    def holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        for steps in self.running:
            steps.close()
        self.world.settle()


def _transfer(link: str) -> Transfer:
    return Transfer(link)


_SETTINGS = settings(
    max_examples=150,
    stateful_step_count=25,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def machine(*missing: str, alone: bool = False, wrong: bool = False) -> type[Nonces]:
    class Unguarded(Nonces):
        without = missing
        signer_alone = alone
        gateway_is_wrong = wrong

    return Unguarded


# Without these txbuilder gives a nonce to two transfers, and a transfer two nonces.
_NO_BUILDER = ("one reservation a transfer", "one holder a nonce", "epoch")


def test_the_theorem_holds() -> None:
    run_state_machine_as_test(Nonces, settings=_SETTINGS)


def test_a_gateway_that_is_wrong_costs_time_and_no_promise() -> None:
    run_state_machine_as_test(machine(wrong=True), settings=_SETTINGS)


def test_signer_alone_keeps_the_promises_of_the_chain() -> None:
    run_state_machine_as_test(machine(*_NO_BUILDER, alone=True, wrong=True), settings=_SETTINGS)


def _run_to(world: World, steps: Steps[None], count: int = 100) -> None:
    """So many durable steps; with 100, to its end."""
    try:
        for _ in range(count):
            next(steps)
            world.check()
    except (StopIteration, Again, Refused):
        world.check()


def _transfer(world: World, number: int) -> str:
    return world.transfers.setdefault(f"t{number}", Transfer(f"t{number}")).link


def _superseding(world: World, link: str, supersedes: str, nonce: int = 0) -> str:
    world.is_gateway_wrong = True
    return world.transfers.setdefault(link, Transfer(link, supersedes=supersedes, nonce=nonce)).link


# How many steps an actor is let go: to where a build has read the account, the row says BUILT, the register has the
# link, the log the intent, the register the signature.
_READ, _BUILT, _ENTERED, _INTENDED, _SIGNED = 5, 7, 8, 9, 11


def two_builds_of_one_transfer(world: World) -> None:
    late = world.carry(_transfer(world, 0))
    _run_to(world, late, 2)
    _run_to(world, world.carry("t0"), _SIGNED)
    _run_to(world, late)


def a_builder_that_was_paused_while_a_nonce_came_back(world: World) -> None:
    late = world.carry(_transfer(world, 0))
    _run_to(world, late, _READ)
    _run_to(world, world.carry(_transfer(world, 1)), _BUILT)
    _run_to(world, world.fail("t1"))
    _run_to(world, late)


def a_freed_nonce_that_a_transfer_and_a_gap_link_want(world: World) -> None:
    for number in (0, 1):
        _run_to(world, world.carry(_transfer(world, number)), _BUILT)
    _run_to(world, world.fail("t0"))
    late = world.carry(_transfer(world, 2))
    _run_to(world, late, _READ)
    _run_to(world, world.carry(_superseding(world, "gap:0", "")), 5)
    _run_to(world, late)


def an_account_that_began_above_transactions_that_a_reorg_took_back(world: World) -> None:
    world.mine_foreign()
    world.mine_foreign()
    _run_to(world, world.carry(_transfer(world, 0)))
    world.reorganise(2)


def a_transfer_that_failed_with_its_nonce(world: World) -> None:
    _run_to(world, world.mismatch(_transfer(world, 0)))
    _run_to(world, world.carry(_transfer(world, 1)))


def two_transfers_that_a_wrong_builder_gave_one_nonce(world: World) -> None:
    late = world.carry(_transfer(world, 0))
    _run_to(world, late, _READ)
    _run_to(world, world.carry(_transfer(world, 1)), _SIGNED)
    _run_to(world, late)


def a_signature_under_way_when_its_link_is_superseded(world: World) -> None:
    late = world.carry(_transfer(world, 0))
    _run_to(world, late, _INTENDED)
    _run_to(world, world.carry(_superseding(world, "t0:cancel", "t0")), 6)
    _run_to(world, late)


def a_transfer_that_fails_while_it_is_signed(world: World) -> None:
    _run_to(world, world.carry(_transfer(world, 0)), _SIGNED)
    _run_to(world, world.fail("t0"))
    _run_to(world, world.carry(_transfer(world, 1)))


def a_signature_under_way_when_its_link_is_voided(world: World) -> None:
    late = world.carry(_transfer(world, 0))
    _run_to(world, late, _INTENDED)
    _run_to(world, world.fail("t0"))
    _run_to(world, late)
    _run_to(world, world.carry(_transfer(world, 1)))


def two_links_that_supersede_one_transfer(world: World) -> None:
    _run_to(world, world.carry(_transfer(world, 0)), _ENTERED)
    for link in ("t0:cancel", "gap:0"):
        _run_to(world, world.carry(_superseding(world, link, "t0")))


def a_superseding_link_that_fails_before_it_is_signed(world: World) -> None:
    _run_to(world, world.carry(_transfer(world, 0)))
    _run_to(world, world.carry(_superseding(world, "t0:cancel", "t0")), 6)
    assert world.rows("t0")[0].superseded_by
    _run_to(world, world.fail("t0:cancel"))


SCHEDULES: list[tuple[str, Callable[[World], None], bool]] = [
    ("one reservation a transfer", two_builds_of_one_transfer, False),
    ("one nonce a link", two_builds_of_one_transfer, True),
    ("epoch", a_builder_that_was_paused_while_a_nonce_came_back, False),
    ("one holder a nonce", a_freed_nonce_that_a_transfer_and_a_gap_link_want, False),
    ("unheld gaps are found", an_account_that_began_above_transactions_that_a_reorg_took_back, False),
    ("held gaps are freed", a_transfer_that_failed_with_its_nonce, False),
    ("one transfer a nonce", two_transfers_that_a_wrong_builder_gave_one_nonce, True),
    ("signed is not voided", a_transfer_that_fails_while_it_is_signed, False),
    ("voided is not signed", a_signature_under_way_when_its_link_is_voided, False),
    ("superseded is not signed", a_signature_under_way_when_its_link_is_superseded, False),
    ("a void gives the mark back", a_superseding_link_that_fails_before_it_is_signed, False),
    ("one superseding link a nonce", two_links_that_supersede_one_transfer, False),
]
# What random schedules notice within seconds.
FOUND_BY_CHANCE = sorted(set(GUARDS) - {guard for guard, _, _ in SCHEDULES})


@pytest.mark.parametrize(("guard", "schedule", "alone"), SCHEDULES)
def test_a_schedule_that_needs_the_guard(guard: str, schedule: Callable[[World], None], alone: bool) -> None:
    first_line = _NO_BUILDER if alone else ()
    guarded = World(first_line, signer_alone=alone)
    schedule(guarded)
    guarded.settle()

    def unguarded() -> None:
        world = World((guard, *first_line), signer_alone=alone)
        schedule(world)
        world.settle()

    with pytest.raises(AssertionError, match=r"I[1-9]:"):
        unguarded()


@pytest.mark.parametrize("guard", FOUND_BY_CHANCE)
def test_without_the_guard_something_is_noticed(guard: str) -> None:
    found = settings(_SETTINGS, max_examples=2_000, phases=[Phase.generate])
    with pytest.raises(AssertionError, match=r"I[1-9]:"):
        run_state_machine_as_test(machine(guard, wrong=True), settings=found)
