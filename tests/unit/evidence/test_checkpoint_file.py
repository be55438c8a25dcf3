"""The checkpoint outside the database: kept whole, never taken back, believed only with this log's signature."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.core.notes import Checkpoint, NoteKey, sign_note
from services.evidence.checkpoint_file import CheckpointFile

PRIVATE = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
KEY = NoteKey("log.test", PRIVATE.public_key().public_bytes_raw())


def signed(size: int, origin: str = "log.test") -> tuple[Checkpoint, str]:
    checkpoint = Checkpoint(origin, size, bytes([size % 256]) * 32)
    return checkpoint, sign_note(checkpoint.text, KEY, PRIVATE.sign)


def test_the_newest_is_kept_and_never_taken_back(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "checkpoint", KEY)
    assert not file.exists()
    for size, kept in ((0, 0), (5, 5), (3, 5), (300, 300)):
        file.keep(*signed(size))
        read = file.read()
        assert read is not None
        assert read.tree_size == kept
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("content", [b"", b"\xff", b"log.test\n", signed(5, "other.test")[1].encode()])
def test_what_this_log_did_not_sign_is_not_believed_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    file = CheckpointFile(tmp_path / "checkpoint", KEY)
    assert file.read() is None
    file.keep(*signed(1))
    read = file.read()
    assert read is not None
    assert read.tree_size == 1


def test_a_signature_over_other_text_is_not_believed(tmp_path: Path) -> None:
    _, note = signed(255)
    (tmp_path / "checkpoint").write_text(note.replace("\n255\n", "\n256\n"))
    assert CheckpointFile(tmp_path / "checkpoint", KEY).read() is None


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        CheckpointFile(tmp_path / "missing" / "checkpoint", KEY).keep(*signed(1))
