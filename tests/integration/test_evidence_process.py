"""evidence as a process: killed, stopped, doubled, without its database, with the wrong past."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from services.core.errors import Reason, WalletError
from services.core.merkle import Frontier
from tests.integration.dependencies import OwnPostgres
from tests.integration.running_evidence import Client, EvidenceProcess, entry

Start = Callable[..., EvidenceProcess]


@pytest.fixture
def evidence(
    service_database: Callable[[str], Any],
    dependencies: Any,
    dev_ca: Callable[[str], Path],
    softhsm_token: Callable[[str], Any],
    tmp_path: Path,
) -> EvidenceProcess:
    return EvidenceProcess(
        service_database("evidence").environment,
        dev_ca,
        softhsm_token("evidence"),
        tmp_path,
        dependencies.ports.free(),
        dependencies.ports.free(),
    )


def standby_of(evidence: EvidenceProcess, dependencies: Any, directory: Path | None = None) -> EvidenceProcess:
    """A second replica over the same database, token and, unless it has a directory of its own, checkpoint file."""
    standby = EvidenceProcess(
        evidence.database,
        evidence.dev_ca,
        evidence.token,
        directory or evidence.directory,
        dependencies.ports.free(),
        dependencies.ports.free(),
    )
    evidence.replicas = standby.replicas = [evidence.port, standby.port]
    return standby


async def append_until_stopped(client: Client, number: int, acknowledged: dict[str, int]) -> None:
    """One caller: appends one entry after another and remembers what was acknowledged."""
    for turn in range(10_000):
        link_id = f"key:{number}:{turn}"
        try:
            acknowledged[link_id] = (await client.append(entry(link_id, body={"n": turn}), timeout_s=2)).index
        except WalletError:
            return


async def reached(acknowledged: dict[str, int], count: int) -> None:
    async with asyncio.timeout(30):
        while len(acknowledged) < count:  # noqa: ASYNC110 - the callers share nothing with us but this
            await asyncio.sleep(0.01)


def stored_log(database: Any) -> dict[str, int]:
    """Index by link id, once the leaves were seen to hash to the stored head."""
    rows = database("SELECT index, link_id, encode(leaf, 'hex') FROM evidence.entries ORDER BY index").splitlines()
    frontier = Frontier()
    found = {}
    for position, row in enumerate(rows):
        index, link_id, leaf = row.split("|")
        assert int(index) == position
        frontier.append(sha256(b"\0" + bytes.fromhex(leaf)).digest())
        found[link_id] = position
    assert database("SELECT encode(frontier, 'hex') FROM evidence.log_head") == frontier.to_bytes().hex()
    return found


async def test_sigkill_under_load_loses_no_acknowledged_entry(
    evidence: EvidenceProcess, service_database: Any, postgres: Any
) -> None:
    database = postgres.database(evidence.database["WALLET_DATABASE_URL"].split("?")[0].rpartition("/")[2]).execute
    acknowledged: dict[str, int] = {}
    for life in range(2):
        async with evidence.running() as client:
            callers = [
                asyncio.create_task(append_until_stopped(client, 100 * life + number, acknowledged))
                for number in range(16)
            ]
            await reached(acknowledged, 300 * (life + 1))
            evidence.process.kill()
            await asyncio.gather(*callers)
    assert len(acknowledged) >= 600
    stored = stored_log(database)
    assert {link_id: stored.get(link_id) for link_id in acknowledged} == acknowledged
    async with evidence.running() as client:
        # What was in flight is appended again: it is there already, or it is now.
        for link_id in list(acknowledged)[-20:]:
            turn = int(link_id.rpartition(":")[2])
            again = await client.append(entry(link_id, body={"n": turn}))
            assert (again.index, again.already_stored) == (acknowledged[link_id], True)
        assert (await client.append(entry("key:last"))).index == len(stored)
    assert len(stored_log(database)) == len(stored) + 1


async def test_graceful_stop_answers_what_waits_and_gives_the_lease_back(
    evidence: EvidenceProcess, dependencies: Any
) -> None:
    standby = standby_of(evidence, dependencies)
    async with evidence.running() as client, standby.running(appending=False) as other:
        calls = [asyncio.create_task(client.append(entry(f"key:{number}"))) for number in range(200)]
        await asyncio.sleep(0.05)
        evidence.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert await evidence.ended() == 0
        refused = [one for one in outcomes if isinstance(one, BaseException)]
        for one in refused:
            assert isinstance(one, WalletError)
            assert one.reason in (Reason.SERVICE_UNAVAILABLE, Reason.EVIDENCE_UNAVAILABLE)
        # Sooner than the lease would have run out.
        await other.until(lambda status: status.appending)
        assert time.monotonic() - began < 2.5
        again = await other.append_all(*(entry(f"key:{number}") for number in range(200)))
        indexes = [one.appended.index for one in again]
        assert sorted(indexes) == list(range(200))
        for outcome, result in zip(outcomes, again, strict=True):
            if not isinstance(outcome, BaseException):
                assert outcome.index == result.appended.index
    for line in evidence.log.read_text().splitlines():
        json.loads(line)


async def test_a_standby_serves_reads_and_takes_over_within_three_seconds(
    evidence: EvidenceProcess, dependencies: Any
) -> None:
    standby = standby_of(evidence, dependencies)
    async with evidence.running() as client, standby.running(appending=False) as other:
        await client.append(entry("key:a"))
        status = await other.until(lambda status: status.checkpoint_size == 1)
        assert (status.appending, status.tree_size) == (False, 1)
        assert "held by another" in status.missing[0]
        with pytest.raises(WalletError) as refused:
            await other.append(entry("key:b"))
        assert refused.value.reason is Reason.EVIDENCE_UNAVAILABLE
        assert (await other.checkpoint()).note == (await client.checkpoint()).note

        evidence.process.kill()
        began = time.monotonic()
        await other.until(lambda status: status.appending)
        assert time.monotonic() - began <= 3
        assert (await other.append(entry("key:a"))).already_stored
        assert (await other.append(entry("key:b"))).index == 1


async def test_a_paused_sequencer_is_fenced_when_it_wakes(evidence: EvidenceProcess, dependencies: Any) -> None:
    standby = standby_of(evidence, dependencies)
    async with evidence.running() as client, standby.running(appending=False) as other:
        await client.append(entry("key:a", "key:1"))
        evidence.process.send_signal(signal.SIGSTOP)
        call = asyncio.create_task(client.append(entry("key:a", "key:2", {"by": "old"}), timeout_s=20))
        await other.until(lambda status: status.appending)
        second = await other.append(entry("key:a", "key:2", {"by": "new"}))
        evidence.process.send_signal(signal.SIGCONT)
        with pytest.raises(WalletError) as refused:
            await call
        # Not ENTRY_CONFLICT and not OUT_OF_ORDER: what it remembers is not the log any more.
        assert refused.value.reason is Reason.EVIDENCE_UNAVAILABLE
        assert not (await client.status()).appending
        assert (await other.append(entry("key:a", "key:3"))).index == second.index + 1


async def test_commits_lost_or_rewritten_outside_the_file_stop_appends(
    evidence: EvidenceProcess, service_database: Callable[[str], Any]
) -> None:
    async with evidence.running() as client:
        await client.append_all(*(entry(f"key:{number}") for number in range(300)))
        await client.until(lambda status: status.checkpoint_size == 300)
    kept = evidence.checkpoint_file.read_bytes()
    original = evidence.database

    # A restored backup: the same token and file, an older database.
    evidence.database = service_database("evidence").environment
    async with evidence.running(appending=False) as client:
        status = await client.until(lambda status: "commits were lost" in " ".join(status.missing))
        assert status.missing == ["the log has 0 entries and its last checkpoint 300: commits were lost"]
        with pytest.raises(WalletError) as refused:
            await client.append(entry("key:new"))
        assert refused.value.reason is Reason.EVIDENCE_UNAVAILABLE
        assert "commits were lost" in refused.value.message

    # A fork: as many entries, others.
    evidence.checkpoint_file.unlink()
    async with evidence.running() as client:
        await client.append_all(*(entry(f"fork:{number}") for number in range(301)))
        await client.until(lambda status: status.checkpoint_size == 301)
    evidence.checkpoint_file.write_bytes(kept)
    async with evidence.running(appending=False) as client:
        await client.until(lambda status: "is not the one of its last checkpoint" in " ".join(status.missing))

    # The file alone is gone, then unreadable as a note.
    evidence.database = original
    evidence.checkpoint_file.unlink()
    async with evidence.running(appending=False) as client:
        await client.until(lambda status: "checkpoint file checkpoint is missing" in " ".join(status.missing))
    evidence.checkpoint_file.write_bytes(kept.replace(b"300", b"299"))
    async with evidence.running(appending=False) as client:
        await client.until(lambda status: "not signed" in " ".join(status.missing))
    evidence.checkpoint_file.write_bytes(kept)
    async with evidence.running() as client:
        assert (await client.append(entry("key:new"))).index == 300


async def kept(process: EvidenceProcess, tree_size: int) -> None:
    """Return when the replica's own checkpoint file is of so many entries."""
    file = process.checkpoint_file
    async with asyncio.timeout(15):
        while not file.exists() or file.read_text().split("\n")[1] != str(tree_size):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.02)


async def test_a_standby_with_a_file_of_its_own_keeps_it_and_takes_over(
    evidence: EvidenceProcess, dependencies: Any, tmp_path: Path
) -> None:
    standby = standby_of(evidence, dependencies, tmp_path / "standby")
    standby.directory.mkdir()
    async with evidence.running() as client, standby.running(appending=False) as other:
        await client.append(entry("key:a"))
        await kept(standby, 1)
        await client.append(entry("key:b"))
        await kept(standby, 2)
        assert standby.checkpoint_file.read_bytes() == evidence.checkpoint_file.read_bytes()
        evidence.process.kill()
        await other.until(lambda status: status.appending)
        assert (await other.append(entry("key:c"))).index == 2
        await kept(standby, 3)
        # And back: what was the holder has missed a checkpoint, and follows.
        await evidence.ended()
        evidence.start()
        await kept(evidence, 3)
        standby.process.kill()
        await client.until(lambda status: status.appending)
        assert (await client.append(entry("key:d"))).index == 3


async def test_a_replica_without_a_past_learns_it_from_the_holder_and_from_nobody_else(
    evidence: EvidenceProcess, dependencies: Any, tmp_path: Path
) -> None:
    async with evidence.running() as client:
        await client.append(entry("key:a"))
        await client.until(lambda status: status.checkpoint_size == 1)
    new = standby_of(evidence, dependencies, tmp_path / "new")
    new.directory.mkdir()
    # Nobody holds the log. The database may be a restored one: it alone is not believed.
    async with new.running(appending=False) as other:
        await other.until(lambda status: "checkpoint file checkpoint is missing" in " ".join(status.missing))
        await other.until(lambda status: status.checkpoint_size == 1)
        with pytest.raises(WalletError) as refused:
            await other.append(entry("key:b"))
        assert refused.value.reason is Reason.EVIDENCE_UNAVAILABLE
        assert not new.checkpoint_file.exists()
        # One that has a past is back. The log does not grow meanwhile.
        async with evidence.running():
            await kept(new, 1)
        await other.until(lambda status: status.appending)
        assert (await other.append(entry("key:b"))).index == 1


async def test_a_holder_that_refuses_the_log_teaches_nobody(
    evidence: EvidenceProcess, dependencies: Any, service_database: Callable[[str], Any], tmp_path: Path
) -> None:
    async with evidence.running() as client:
        await client.append_all(*(entry(f"key:{number}") for number in range(300)))
        await client.until(lambda status: status.checkpoint_size == 300)
    kept_file = evidence.checkpoint_file.read_bytes()
    # A restored backup, with fewer entries, and a checkpoint of its own.
    evidence.database = service_database("evidence").environment
    evidence.checkpoint_file.unlink()
    async with evidence.running() as client:
        await client.append(entry("key:0"))
        await client.until(lambda status: status.checkpoint_size == 1)
    evidence.checkpoint_file.write_bytes(kept_file)
    new = standby_of(evidence, dependencies, tmp_path / "new")
    new.directory.mkdir()
    async with evidence.running(appending=False) as client:
        await client.until(lambda status: "commits were lost" in " ".join(status.missing))
        async with new.running(appending=False) as other:
            # It has looked several times.
            await other.until(lambda status: status.checkpoint_size == 1)
            await asyncio.sleep(1)
            assert not new.checkpoint_file.exists()
            evidence.process.kill()
            status = await other.until(lambda status: "is missing" in " ".join(status.missing))
            assert not status.appending


async def test_an_operator_lets_a_replica_without_a_past_go_on(
    evidence: EvidenceProcess, dependencies: Any, tmp_path: Path
) -> None:
    async with evidence.running() as client:
        await client.append(entry("key:a"))
        await client.until(lambda status: status.checkpoint_size == 1)
        root_hash = (await client.checkpoint()).root_hash
    evidence.checkpoint_file.unlink()

    async def adopt() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "services.evidence", "adopt"]
        return await asyncio.to_thread(
            subprocess.run, command, env=evidence.environment, capture_output=True, text=True
        )

    adopted = await adopt()
    assert (adopted.returncode, adopted.stdout) == (0, f"adopted: 1 entries, root hash {root_hash.hex()}\n")
    again = await adopt()
    assert again.returncode != 0
    assert "there is a checkpoint file" in again.stderr
    async with evidence.running() as client:
        assert (await client.append(entry("key:b"))).index == 1


async def test_another_token_key_is_noticed_and_a_wrong_pin_ends_the_process(
    evidence: EvidenceProcess, softhsm_token: Callable[[str], Any], tmp_path: Path
) -> None:
    async with evidence.running() as client:
        await client.append(entry("key:a"))
        await client.until(lambda status: status.checkpoint_size == 1)
    token = evidence.token
    shutil.rmtree(tmp_path / "tokens")
    evidence.token = softhsm_token("evidence")
    async with evidence.running(appending=False) as client:
        await client.until(lambda status: "the token does not hold the key" in " ".join(status.missing))
        # It reads, and leaves the log to a replica with the key.
        assert (await client.checkpoint()).tree_size == 1
    assert token.pin_file.exists()
    evidence.token.pin_file.write_text("000000000\n")
    evidence.log.unlink()
    evidence.start()
    assert await evidence.ended() != 0
    lines = [json.loads(line) for line in evidence.log.read_text().splitlines()]
    assert lines[-1]["reason"] == "TOKEN_PIN_INCORRECT"
    assert "000000000" not in evidence.log.read_text()


@pytest.fixture
def stoppable(own_postgres: Callable[[], OwnPostgres]) -> Iterator[OwnPostgres]:
    with own_postgres() as postgres:
        yield postgres


async def test_database_gone_for_ten_seconds(
    stoppable: OwnPostgres,
    dependencies: Any,
    dev_ca: Callable[[str], Path],
    softhsm_token: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    database = (await asyncio.to_thread(stoppable.migrated, "evidence")).environment
    evidence = EvidenceProcess(
        database, dev_ca, softhsm_token("evidence"), tmp_path, dependencies.ports.free(), dependencies.ports.free()
    )
    async with evidence.running() as client:
        acknowledged: dict[str, int] = {}
        callers = [asyncio.create_task(append_until_stopped(client, number, acknowledged)) for number in range(8)]
        await reached(acknowledged, 100)
        await asyncio.to_thread(stoppable.stop)
        await asyncio.gather(*callers)
        gone = time.monotonic()
        status = await client.until(lambda status: not status.appending)
        assert status.missing
        refusals = 0
        while time.monotonic() - gone < 10:
            with pytest.raises(WalletError) as refused:
                await client.append(entry("key:meanwhile"), timeout_s=5)
            assert refused.value.reason is Reason.EVIDENCE_UNAVAILABLE
            refusals += 1
            await asyncio.sleep(0.5)
        assert refusals >= 10
        await asyncio.to_thread(stoppable.start)
        back = time.monotonic()
        await client.until(lambda status: status.appending)
        assert time.monotonic() - back < 3
        stored = stored_log(stoppable.execute)
        assert {link_id: stored.get(link_id) for link_id in acknowledged} == acknowledged
        assert (await client.append(entry("key:meanwhile"))).index == len(stored)

        # Every connection is cut at once, also in the middle of commits: retries are idempotent, and service goes on.
        links = [f"cut:{number}" for number in range(200)]

        async def insist(link_id: str) -> int:
            for _ in range(200):
                with contextlib.suppress(WalletError):
                    return (await client.append(entry(link_id), timeout_s=5)).index
                await asyncio.sleep(0.02)
            raise AssertionError(link_id)

        calls = asyncio.gather(*(insist(link_id) for link_id in links))
        cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'evidence'"
        for _ in range(10):
            await asyncio.to_thread(stoppable.execute, cut)
        indexes = await calls
        stored = stored_log(stoppable.execute)
        assert [stored[link_id] for link_id in links] == indexes
        assert len(set(indexes)) == len(links)
        # Hung, not gone: nothing is answered before it is durable, and it goes on by itself.
        backends = [
            int(pid) for pid in stoppable.execute("SELECT pid FROM pg_stat_activity WHERE usename = 'evidence'").split()
        ]
        for pid in backends:
            os.kill(pid, signal.SIGSTOP)
        hung = asyncio.create_task(client.append(entry("key:hung"), timeout_s=20))
        await asyncio.sleep(1)
        assert not hung.done()
        for pid in backends:
            os.kill(pid, signal.SIGCONT)
        assert (await hung).index == len(stored)
