"""Intents of links that the sequencer does not remember: taken for new ones, and right also where they are not."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import rfc8785
from sqlalchemy import text

from protos.wallet.v1 import evidence_pb2 as pb
from services.core.errors import Reason
from services.core.merkle import Frontier
from tests.integration.running_evidence import RunningLog, entry
from tests.unit.verify import forge


@pytest.fixture
def log(service_database: Callable[[str], Any], dev_ca: Callable[[str], Path], tmp_path: Path) -> RunningLog:
    return RunningLog(service_database("evidence").settings, dev_ca, tmp_path, clock=lambda: forge.START)


def intent(link_id: str, value: int = 1, decision: str = "allow") -> pb.AppendEntryRequest:
    body = rfc8785.dumps(forge.intent(forge.Tx(value=value), decision=decision).body)
    return entry(link_id, "intent:1", body, "intent")


@asynccontextmanager
async def forgetful(log: RunningLog, *remembered: pb.AppendEntryRequest) -> AsyncIterator[RunningLog]:
    """A sequencer that has begun after these were appended."""
    async with log.running() as before:
        for one in remembered:
            await before.client.append(one)
    async with dataclasses.replace(log).running() as after:
        yield after


async def is_sound(log: RunningLog) -> bool:
    """Whether the stored entries hash to the head, and each link's steps are 0, 1, 2 …"""
    async with log.database.statement() as connection:
        rows = await connection.execute(text("SELECT link_id, step, leaf_hash FROM evidence.entries ORDER BY index"))
        head = (await connection.execute(text("SELECT frontier FROM evidence.log_head"))).scalar_one()
    frontier, steps = Frontier(), dict[str, int]()
    for link_id, step, leaf_hash in rows:
        assert step == steps.get(link_id, 0)
        steps[link_id] = step + 1
        frontier.append(leaf_hash)
    return frontier.to_bytes() == head


async def test_an_intent_that_is_stored_is_answered_with_its_index_and_hurts_no_neighbour(log: RunningLog) -> None:
    async with forgetful(log, intent("a"), intent("b"), entry("key:1")) as after:
        results = await after.client.append_all(intent("c"), intent("b"), entry("key:1"), intent("d"), intent("c"))
        assert [one.appended.index for one in results] == [3, 1, 2, 4, 3]
        assert [one.appended.already_stored for one in results] == [False, True, True, False, True]
        assert await is_sound(after)
        # The memory is that of the log: the link goes on behind its intent.
        signed = rfc8785.dumps(forge.signature(forge.Tx(value=1)).body)
        (added,) = await after.client.append_all(entry("b", "signature:1", signed, "signature"))
        assert (added.appended.index, added.appended.step) == (5, 1)


async def test_another_intent_under_a_stored_id_is_a_conflict(log: RunningLog) -> None:
    async with forgetful(log, intent("a")) as after:
        conflict, added = await after.client.append_all(intent("a", value=2), intent("b"))
        assert conflict.failure.error.reason == Reason.ENTRY_CONFLICT.name
        assert conflict.failure.stored_body == intent("a").body
        assert added.appended.index == 1
        assert await is_sound(after)


async def test_a_refusal_is_the_one_of_the_stored_link(log: RunningLog) -> None:
    async with forgetful(log, intent("a"), intent("b", decision="deny")) as after:
        second = intent("a", decision="deny")
        second.entry_id = "intent:2"
        late = intent("b")
        late.entry_id = "intent:2"
        malformed = entry("c", "intent:1", {"n": 1}, "intent")
        out_of_order, closed, wrong, added = await after.client.append_all(second, late, malformed, intent("d"))
        assert out_of_order.failure.error.reason == Reason.OUT_OF_ORDER.name
        assert closed.failure.error.reason == Reason.LINK_CLOSED.name
        assert wrong.failure.error.reason == Reason.INVALID_REQUEST.name
        assert added.appended.index == 2
        assert await is_sound(after)


async def test_what_an_old_link_says_counts_also_where_the_new_entry_is_malformed(log: RunningLog) -> None:
    async with forgetful(log, intent("a")) as after:
        (conflict,) = await after.client.append_all(entry("a", "intent:1", {"n": 1}, "intent"))
        assert conflict.failure.error.reason == Reason.ENTRY_CONFLICT.name


async def test_a_new_link_is_not_looked_up(log: RunningLog, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(link_ids: list[str]) -> NoReturn:
        raise AssertionError(f"looked up: {link_ids}")

    async with log.running():
        monkeypatch.setattr(log.store, "entries_of_links", refused)
        assert (await log.client.append(intent("a"))).index == 0
        assert (await log.client.append(intent("b"))).index == 1
