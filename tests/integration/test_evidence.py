"""The log over real gRPC, mTLS and PostgreSQL: what callers are promised, and what the database itself refuses."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from protos.wallet.v1 import evidence_pb2 as pb
from services.core.errors import Reason, WalletError
from services.core.merkle import Frontier, consistency_proof, verify_consistency
from services.runtime.db import database_url
from tests.integration.running_evidence import SPAN_ID, TRACE_ID, RunningLog, calling, entry


@pytest.fixture
async def log(
    service_database: Callable[[str], Any], dev_ca: Callable[[str], Path], tmp_path: Path
) -> AsyncIterator[RunningLog]:
    async with RunningLog(service_database("evidence").settings, dev_ca, tmp_path).running() as running:
        yield running


async def refusal(call: Any) -> WalletError:
    with pytest.raises(WalletError) as raised:
        await call
    return raised.value


async def recomputed(log: RunningLog) -> tuple[int, bytes]:
    """(size, root) from the stored leaves alone."""
    async with log.database.statement() as connection:
        rows = await connection.execute(text("SELECT index, leaf FROM evidence.entries ORDER BY index"))
        frontier = Frontier()
        for position, (index, leaf) in enumerate(rows):
            assert index == position
            frontier.append(sha256(b"\0" + leaf).digest())
    return frontier.size, frontier.root()


async def test_an_entry_is_appended_once_and_its_leaf_says_what_was_given(log: RunningLog) -> None:
    request = entry("key:a", "key:1", {"event": "made"})
    first = await log.client.append(request)
    again = await log.client.append(request)
    assert (first.index, first.step, first.already_stored) == (0, 0, False)
    assert (again.index, again.leaf_hash, again.at, again.already_stored) == (0, first.leaf_hash, first.at, True)

    link = await log.client.stub.GetLink(pb.GetLinkRequest(link_id="key:a"))
    (stored,) = link.entries
    leaf = json.loads(stored.leaf)
    assert first.leaf_hash == sha256(b"\0" + stored.leaf).digest()
    assert leaf.pop("at").startswith(first.at.ToDatetime().isoformat(timespec="microseconds"))
    assert leaf == {
        "v": 1,
        "kind": "key",
        "link_id": "key:a",
        "step": 0,
        "prev": "",
        "trace_id": TRACE_ID,
        "span_id": SPAN_ID,
        "body": "0x" + sha256(stored.salt + stored.body).hexdigest(),
    }
    assert (link.state, link.trace_id, stored.body, len(stored.salt)) == (
        "ADMINISTRATIVE",
        TRACE_ID,
        request.body,
        32,
    )


async def test_an_entry_id_with_another_body_is_refused_with_the_stored_one(log: RunningLog) -> None:
    first, other = entry("key:a", "key:1", {"n": 1}), entry("key:a", "key:1", {"n": 2})
    await log.client.append(first)
    assert (await refusal(log.client.append(other))).reason is Reason.ENTRY_CONFLICT
    conflict, neighbour = await log.client.append_all(other, entry("key:b"))
    assert conflict.failure.error.reason == "ENTRY_CONFLICT"
    assert conflict.failure.stored_body == first.body
    assert neighbour.appended.index == 1
    # Also within one call: the first of two wins.
    first, second = await log.client.append_all(entry("key:c", body={"n": 1}), entry("key:c", body={"n": 2}))
    assert first.appended.index == 2
    assert json.loads(second.failure.stored_body) == {"n": 1}


async def test_a_batch_takes_items_of_one_link_in_order_and_chains_them(log: RunningLog) -> None:
    results = await log.client.append_all(*(entry("key:a", f"key:{n}", {"n": n}) for n in range(600)))
    assert [(one.appended.index, one.appended.step) for one in results] == [(n, n) for n in range(600)]
    link = await log.client.stub.GetLink(pb.GetLinkRequest(link_id="key:a"))
    before = ""
    for stored in link.entries:
        assert json.loads(stored.leaf)["prev"] == before
        before = "0x" + sha256(b"\0" + stored.leaf).hexdigest()
    assert await recomputed(log) == (600, await log.tiles.root(600))


BAD_ENTRIES = {
    "link_id": [entry(""), entry("a b"), entry("a\0b"), entry("x" * 65), entry("ä")],
    "entry_id": [entry("a", ""), entry("a", "b\0c"), entry("a", "x" * 129), entry("a", "é")],
    "kind": [entry("a", kind=""), entry("a", kind="Key"), entry("a", kind="key\0")],
    "trace_id": [entry("a", trace_id=""), entry("a", trace_id="0" * 32), entry("a", trace_id="G" * 32)],
    "body": [entry("a", body=one) for one in (b"[]", b'{"b":1,"a":2}', b'{"a":1,"a":1}', b"\xff", b'{"a": 1}')],
}


async def test_bad_entries_are_refused_by_name_and_hurt_no_neighbour(log: RunningLog) -> None:
    bad = [(field, one) for field, entries in BAD_ENTRIES.items() for one in entries]
    good = [entry(f"good:{n}") for n in range(len(bad))]
    results = await log.client.append_all(
        *(one for pair in zip(good, (one for _, one in bad), strict=True) for one in pair)
    )
    assert [one.appended.index for one in results[::2]] == list(range(len(good)))
    for (field, _), result in zip(bad, results[1::2], strict=True):
        assert result.failure.error.reason == "INVALID_REQUEST", result
        assert result.failure.error.details["field"] == field, result
    wrong = await refusal(log.client.append(entry("a", kind="intent", body={"account": 1})))
    assert (wrong.reason, wrong.details["field"]) == (Reason.INVALID_REQUEST, "account")
    assert (await log.client.status()).tree_size == len(good)


async def test_sizes_are_bounded(log: RunningLog) -> None:
    mebibyte = b'{"a":"' + b"x" * ((1 << 20) - 8) + b'"}'
    assert (await log.client.append(entry("big", body=mebibyte))).index == 0
    too_large = await refusal(log.client.append(entry("bigger", body=mebibyte[:-2] + b'x"}')))
    assert too_large.reason is Reason.PAYLOAD_TOO_LARGE
    heavy = await refusal(log.client.append_all(*(entry(f"l:{n}", body=mebibyte) for n in range(17))))
    assert (heavy.reason, heavy.details["field"]) == (Reason.PAYLOAD_TOO_LARGE, "entries")
    assert len(await log.client.append_all(*(entry(f"l:{n}", body=mebibyte) for n in range(16)))) == 16
    for requests in ([], [entry(f"m:{n}") for n in range(5_001)]):
        assert (await refusal(log.client.append_all(*requests))).details["field"] == "entries"


async def test_what_the_grammar_forbids_is_refused_before_it_is_written(log: RunningLog) -> None:
    await log.client.append(entry("key:a"))
    mixed = await refusal(
        log.client.append(
            entry("key:a", "r:1", {"block_hash": "0x" + "11" * 32, "depth": 1, "reason": "r"}, "revocation")
        )
    )
    assert mixed.reason is Reason.OUT_OF_ORDER
    assert (await log.client.status()).tree_size == 1


async def test_concurrent_callers_share_commits_and_get_distinct_dense_indexes(log: RunningLog) -> None:
    await log.client.append(entry("key:first"))
    async with log.database.begin() as connection:
        # Whoever commits now waits for us; what comes meanwhile waits for the next commit.
        await connection.execute(text("SELECT FROM evidence.log_head FOR UPDATE"))
        calls = [asyncio.create_task(log.client.append(entry(f"key:{n}"))) for n in range(400)]
        async with asyncio.timeout(20):
            while log.sequencer.waiting_entries < 300:  # noqa: ASYNC110 - nothing tells of a call that waits
                await asyncio.sleep(0.01)
    appended = await asyncio.gather(*calls)
    assert sorted(one.index for one in appended) == list(range(1, 401))
    # The entries of a commit bear its time.
    async with log.database.begin() as connection:
        leaves = (await connection.execute(text("SELECT leaf FROM evidence.entries WHERE index > 0"))).scalars()
        times = {json.loads(leaf)["at"] for leaf in leaves}
    assert len(times) <= 101
    assert await recomputed(log) == (401, await log.tiles.root(401))


async def test_a_cancelled_caller_takes_nothing_back_and_leaves_the_others_alone(log: RunningLog) -> None:
    calls = [asyncio.create_task(log.client.append(entry(f"key:{n}"))) for n in range(50)]
    await asyncio.sleep(0.01)
    for call in calls[::2]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    again = await asyncio.gather(*(log.client.append(entry(f"key:{n}")) for n in range(50)))
    assert sorted(one.index for one in again) == list(range(50))
    assert all(one.already_stored for one in again[1::2])


async def test_callers_that_are_not_listed_are_refused(log: RunningLog, dev_ca: Callable[[str], Path]) -> None:
    async with calling(dev_ca, log.port, "stranger") as stranger:
        assert (await refusal(stranger.append(entry("a")))).reason is Reason.CALLER_NOT_ALLOWED


REWRITES = [
    "UPDATE evidence.entries SET step = 9",
    "UPDATE evidence.entries SET leaf = leaf WHERE false",
    "DELETE FROM evidence.entries",
    "TRUNCATE evidence.entries CASCADE",
    "UPDATE evidence.bodies SET body = 'x'",
    "TRUNCATE evidence.bodies",
    "UPDATE evidence.tiles SET hashes = hashes",
    "DELETE FROM evidence.tiles",
    "UPDATE evidence.checkpoints SET note = 'x'",
    "DELETE FROM evidence.checkpoints",
    "TRUNCATE evidence.checkpoints",
    "DELETE FROM evidence.log_head",
]


async def test_the_database_itself_refuses_to_rewrite(
    service_database: Callable[[str], Any], dev_ca: Callable[[str], Path], tmp_path: Path
) -> None:
    database = service_database("evidence")
    async with RunningLog(database.settings, dev_ca, tmp_path).running() as log:
        await log.client.append_all(*(entry(f"key:{n}") for n in range(300)))
    roles = {
        "evidence": (database.settings.database_password_file, "permission denied"),
        "evidence_owner": (database.owner_settings.database_owner_password_file, "append-only"),
    }
    for role, (password_file, why) in roles.items():
        engine = create_async_engine(database_url(database.settings, password_file, role))
        for rewrite in [*REWRITES, *(["DELETE FROM evidence.bodies"] if role == "evidence" else [])]:
            with pytest.raises(Exception, match=why):
                async with engine.begin() as connection:
                    await connection.execute(text(rewrite))
        await engine.dispose()


async def test_an_erased_body_closes_its_link_and_the_tree_still_verifies(
    service_database: Callable[[str], Any], dev_ca: Callable[[str], Path], tmp_path: Path
) -> None:
    database = service_database("evidence")
    log = RunningLog(database.settings, dev_ca, tmp_path)
    async with log.running():
        await log.client.append_all(entry("key:a"), entry("key:b"))
    owner = create_async_engine(
        database_url(database.settings, database.owner_settings.database_owner_password_file, "evidence_owner")
    )
    async with owner.begin() as connection:
        await connection.execute(text("DELETE FROM evidence.bodies WHERE index = 0"))
    await owner.dispose()
    again = RunningLog(database.settings, dev_ca, tmp_path, log.private_key)
    async with again.running():
        assert (await refusal(again.client.append(entry("key:a", "key:2")))).reason is Reason.LINK_CLOSED
        link = await again.client.stub.GetLink(pb.GetLinkRequest(link_id="key:a"))
        assert (link.state, link.entries[0].body, link.entries[0].salt) == ("ERASED", b"", b"")
        (conflict,) = await again.client.append_all(entry("key:a"))
        assert (conflict.failure.error.reason, conflict.failure.stored_body) == ("ENTRY_CONFLICT", b"")
        assert (await again.client.append(entry("key:b", "key:2"))).index == 2
        assert await recomputed(again) == (3, await again.tiles.root(3))


async def test_a_head_that_another_tree_has_come_to_is_not_written_behind(log: RunningLog) -> None:
    """The same epoch and size, other entries: what a restored database and a second sequencer can amount to."""
    await log.client.append_all(*(entry(f"key:{number}") for number in range(4)))
    other = Frontier()
    for number in range(4):
        other.append(bytes([number]) * 32)
    async with log.database.statement() as connection:
        await connection.execute(text("UPDATE evidence.log_head SET frontier = :other"), {"other": other.to_bytes()})
    assert (await refusal(log.client.append(entry("key:4")))).reason is Reason.EVIDENCE_UNAVAILABLE
    status = await log.client.until(lambda status: "do not hash to its head" in " ".join(status.missing))
    assert (status.appending, status.tree_size) == (False, 4)
    assert await log.store.leaves(4, 1) == []


async def test_checkpoints_follow_growth_and_each_extends_the_one_before(log: RunningLog) -> None:
    seen = [await log.client.checkpoint()]
    for size in (1, 7, 256, 300, 600):
        last = seen[-1].tree_size
        await log.client.append_all(*(entry(f"key:{n}") for n in range(last, size)))
        async with asyncio.timeout(2):
            await log.client.until(lambda status, size=size: status.checkpoint_size == size)
        seen.append(await log.client.checkpoint())
    frontier, subtrees = Frontier(), {}
    for leaf_hash in await log.store.leaf_hashes(0, 600):
        subtrees.update({(level, index): node for level, index, node in frontier.append(leaf_hash)})
    for old, new in itertools.pairwise(seen[1:]):
        proof = consistency_proof(old.tree_size, new.tree_size, lambda level, index: subtrees[level, index])
        verify_consistency(old.tree_size, new.tree_size, old.root_hash, new.root_hash, proof)
    assert (await log.client.status()).checkpoint_size == 600


async def test_bundles_that_cannot_be_are_refused_by_name(log: RunningLog) -> None:
    unknown = await refusal(log.client.bundle("nobody"))
    assert (unknown.reason, unknown.details["field"]) == (Reason.NOT_FOUND, "link_id")
    assert (await refusal(log.client.bundle("a b"))).reason is Reason.INVALID_REQUEST
    await log.client.append(entry("key:a"))
    assert (await refusal(log.client.bundle("key:a"))).reason is Reason.INVALID_REQUEST
    assert (await refusal(log.client.bundle("key:a", wait_ms=5_001))).details["field"] == "wait_ms"


async def test_a_sequencer_that_was_overtaken_refuses_nothing_from_memory(
    service_database: Callable[[str], Any], dev_ca: Callable[[str], Path], tmp_path: Path
) -> None:
    overtaken = RunningLog(service_database("evidence").settings, dev_ca, tmp_path, lease_s=30)
    async with overtaken.running() as log:
        await log.client.append(entry("key:a"))
        assert await log.store.take_over(30, held_epoch=1) is not None
        wrong = entry("key:a", "r:1", {"block_hash": "0x" + "11" * 32, "depth": 1, "reason": "r"}, "revocation")
        assert (await refusal(log.client.append(wrong))).reason is Reason.EVIDENCE_UNAVAILABLE
