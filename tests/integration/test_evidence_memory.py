"""What a replica remembers of the log, against a database that says something else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from services.core.errors import WalletError
from services.core.notes import Checkpoint, sign_note
from services.evidence.checkpoint_file import CheckpointFile, read_checkpoint
from services.evidence.memory import Memory
from services.evidence.tiles import TileReader
from tests.integration.running_evidence import ORIGIN, KeyInMemory, RunningLog, entry


@pytest.fixture
async def log(
    service_database: Callable[[str], Any], dev_ca: Callable[[str], Path], tmp_path: Path
) -> AsyncIterator[RunningLog]:
    async with RunningLog(service_database("evidence").settings, dev_ca, tmp_path).running() as running:
        yield running


def signed(log: RunningLog, tree_size: int, root_hash: bytes) -> tuple[Checkpoint, str]:
    checkpoint = Checkpoint(ORIGIN, tree_size, root_hash)
    return checkpoint, sign_note(checkpoint.text, log.key, log.private_key.sign)


class HolderWith:
    def __init__(self, note: str) -> None:
        self._note = note

    async def checkpoint(self) -> str | None:
        return self._note


async def test_a_standby_copies_only_what_extends_what_it_knows(log: RunningLog, tmp_path: Path) -> None:
    await log.client.append(entry("key:a"))
    true_root = await log.tiles.root(1)
    await log.client.append(entry("key:b"))
    await log.client.until(lambda status: status.checkpoint_size == 2)
    note = (await log.client.checkpoint()).note.decode()
    published = read_checkpoint(note, log.key)
    assert published is not None
    cases = {"same": (1, true_root, 2), "fork": (1, bytes(32), None), "lost": (3, bytes(32), 3)}
    for name, (size, root_hash, kept_size) in cases.items():
        file = CheckpointFile(tmp_path / name, log.key)
        file.keep(*signed(log, size, root_hash))
        memory = Memory(log.store, TileReader(log.store), KeyInMemory(log.private_key, log.key), file, None)
        if kept_size is None:
            with pytest.raises(WalletError, match="does not extend the checkpoint in the file fork"):
                await memory.follow(published, note)
        else:
            await memory.follow(published, note)
        kept = file.read()
        assert kept is not None
        assert kept.tree_size == (kept_size or size)
        # And whoever of them takes the log over, says what he sees.
        head = await log.store.take_over(1.0, log.sequencer._epoch)
        assert head is not None
        log.sequencer._epoch = head.epoch
        said = await memory.compare(head)
        assert (
            said
            == {
                "same": None,
                "fork": "the log's root at 1 entries is not the one of its last checkpoint",
                "lost": "the log has 2 entries and its last checkpoint 3: commits were lost",
            }[name]
        )


@pytest.mark.parametrize("case", ["true", "of another log", "not signed"])
async def test_a_replica_without_a_past_learns_what_the_database_bears_out(
    log: RunningLog, tmp_path: Path, case: str
) -> None:
    await log.client.append(entry("key:a"))
    await log.client.until(lambda status: status.checkpoint_size == 1)
    note = (await log.client.checkpoint()).note.decode()
    published = read_checkpoint(note, log.key)
    assert published is not None
    told = {
        "true": note,
        "of another log": signed(log, 1, bytes(32))[1],
        "not signed": note.replace("\n1\n", "\n2\n"),
    }[case]
    file = CheckpointFile(tmp_path / "own", log.key)
    key = KeyInMemory(log.private_key, log.key)
    memory = Memory(log.store, TileReader(log.store), key, file, HolderWith(told))
    assert await memory.unfit() == "the checkpoint file own is missing while the log has checkpoints"
    await memory.follow(published, note)
    assert file.exists() == (case == "true")
    assert (await memory.unfit() is None) == (case == "true")
