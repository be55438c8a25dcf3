"""The spool's file: what was appended is read, whatever a crash made of the rest, and by one process only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.runtime.span_frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, encode_frame, first_frames
from services.runtime.span_spool import MemorySpool, SpanSpool, spools_of

_MAX_BYTES = 8 * MAX_PAYLOAD_BYTES


class Torn:
    def __init__(self) -> None:
        self.size = 0

    def __call__(self, size: int) -> None:
        self.size += size


@pytest.fixture
def torn() -> Torn:
    return Torn()


@pytest.fixture
def spool(tmp_path: Path, torn: Torn) -> SpanSpool:
    return SpanSpool.create(tmp_path, "signer", _MAX_BYTES, torn)


def _file(directory: Path) -> Path:
    (path,) = directory.glob("*.spool")
    return path


def _killed(spool: SpanSpool) -> None:
    """What the kernel does for a process that is killed: its files are closed, and nothing else happens."""
    os.close(spool._descriptor)


def _drain(spool: SpanSpool | MemorySpool) -> list[bytes]:
    read = []
    while (chunk := spool.read()) is not None:
        read.append(chunk.payload)
        spool.acknowledge(chunk.end)
    return read


def _adopted(path: Path, torn: Callable[[int], None]) -> SpanSpool:
    adopted = SpanSpool.adopt(path, torn)
    assert adopted is not None
    return adopted


def test_what_is_not_acknowledged_is_read_again_and_the_file_shrinks_with_the_rest(
    spool: SpanSpool, tmp_path: Path
) -> None:
    assert spool.append(b"one", 1)
    first = spool.read()
    assert first is not None
    assert spool.read() == first
    assert spool.append(b"two", 2)
    spool.acknowledge(first.end)
    assert (first.payload, first.spans) == (b"one", 1)
    assert _drain(spool) == [b"two"]
    assert (_file(tmp_path).stat().st_size, spool.size_bytes) == (0, 0)
    assert spool.append(b"three", 1)
    assert _drain(spool) == [b"three"]
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_frames_are_sent_together_up_to_what_a_collector_takes(spool: SpanSpool) -> None:
    large = b"x" * (MAX_PAYLOAD_BYTES // 3 - HEADER_BYTES)
    for _ in range(7):
        assert spool.append(large, 10)
    assert [len(payload) // len(large) for payload in _drain(spool)] == [3, 3, 1]


def test_a_living_process_keeps_its_spool_and_a_dead_ones_is_taken_once(
    spool: SpanSpool, tmp_path: Path, torn: Torn
) -> None:
    assert spool.append(b"left", 1)
    path = _file(tmp_path)
    assert list(spools_of(tmp_path, "signer")) == [path]
    assert list(spools_of(tmp_path, "sign")) == []
    assert SpanSpool.adopt(path, torn) is None
    _killed(spool)
    adopted = _adopted(path, torn)
    assert SpanSpool.adopt(path, torn) is None
    assert _drain(adopted) == [b"left"]
    adopted.close()
    assert SpanSpool.adopt(path, torn) is None
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_removed_between_finding_and_locking_it_is_not_adopted(
    spool: SpanSpool, tmp_path: Path, torn: Torn, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path)
    _killed(spool)
    opened = os.open

    def open_then_lose(*args: object, **options: object) -> int:
        descriptor = opened(*args, **options)  # type: ignore[arg-type]
        path.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", open_then_lose)
    assert SpanSpool.adopt(path, torn) is None


def test_what_an_adopter_did_not_send_is_left_to_the_next(spool: SpanSpool, tmp_path: Path, torn: Torn) -> None:
    for number in range(3):
        spool.append(bytes([number]) * (MAX_PAYLOAD_BYTES - 1), 1)
    path = _file(tmp_path)
    _killed(spool)
    adopted = _adopted(path, torn)
    chunk = adopted.read()
    assert chunk is not None
    adopted.acknowledge(chunk.end)
    adopted.close()
    # Sent again from the start: at least once, and the store knows the same bytes.
    assert len(_drain(_adopted(path, torn))) == 3


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.data())
def test_a_torn_tail_is_cut_and_what_is_before_it_is_whole(payloads: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(encode_frame(payload, 1) for payload in payloads)
    cut = data.draw(st.integers(0, len(whole) - 1))
    kept, size = [], 0
    for payload in payloads:
        size += HEADER_BYTES + len(payload)
        if size > cut:
            break
        kept.append(payload)
    frames = first_frames(whole[:cut])
    assert (frames.payload, frames.spans) == (b"".join(kept), len(kept))


@pytest.mark.parametrize(
    "tail", [b"GLS1", b"GLS1" + bytes(30), bytes(5000), b"\xff" * 17, b"G", encode_frame(b"x" * 99, 1)[:-1]]
)
def test_garbage_behind_the_last_frame_is_counted_and_costs_no_frame(
    spool: SpanSpool, tmp_path: Path, torn: Torn, tail: bytes
) -> None:
    spool.append(b"one", 1)
    spool.append(b"two", 1)
    path = _file(tmp_path)
    _killed(spool)
    with path.open("ab") as file:
        file.write(tail)
    assert b"".join(_drain(_adopted(path, torn))) == b"onetwo"
    assert torn.size == len(tail)


@given(st.integers(0, 3 * (HEADER_BYTES + 50) - 1), st.integers(1, 255))
@example(2 * (HEADER_BYTES + 50) + 8, 1)  # the last frame says that it is longer
def test_a_changed_byte_costs_its_frame_only(
    tmp_path_factory: pytest.TempPathFactory, position: int, change: int
) -> None:
    directory, torn = tmp_path_factory.mktemp("spool"), Torn()
    spool = SpanSpool.create(directory, "signer", _MAX_BYTES, torn)
    payloads = [bytes([65 + number]) * 50 for number in range(3)]
    for payload in payloads:
        spool.append(payload, 1)
    path = _file(directory)
    _killed(spool)
    content = bytearray(path.read_bytes())
    content[position] ^= change
    path.write_bytes(content)
    damaged = position // (HEADER_BYTES + 50)
    kept = [payload for number, payload in enumerate(payloads) if number != damaged]
    assert b"".join(_drain(_adopted(path, torn))) == b"".join(kept)
    assert torn.size == HEADER_BYTES + 50


def test_a_file_that_lost_its_end_is_read_to_there(spool: SpanSpool, tmp_path: Path, torn: Torn) -> None:
    spool.append(b"one", 1)
    spool.append(b"two", 1)
    os.truncate(_file(tmp_path), HEADER_BYTES + 3)
    assert _drain(spool) == [b"one"]
    assert torn.size == HEADER_BYTES + 3


def test_a_full_spool_refuses_what_is_new_and_has_room_again_once_half_is_acknowledged(
    spool: SpanSpool, tmp_path: Path, torn: Torn
) -> None:
    payload = b"x" * (MAX_PAYLOAD_BYTES - HEADER_BYTES)
    assert all(spool.append(payload, 1) for _ in range(8))
    assert not spool.append(payload, 1)
    for _ in range(4):
        chunk = spool.read()
        assert chunk is not None
        spool.acknowledge(chunk.end)
    old = _file(tmp_path).stat().st_ino
    assert spool.append(b"new", 1)
    assert _file(tmp_path).stat().st_ino != old
    assert _file(tmp_path).stat().st_size < 5 * MAX_PAYLOAD_BYTES
    # Still its own, and all there.
    assert SpanSpool.adopt(_file(tmp_path), torn) is None
    assert b"".join(_drain(spool)) == payload * 4 + b"new"


def test_a_copy_that_was_not_finished_is_removed_and_one_that_is_being_made_is_not(
    spool: SpanSpool, tmp_path: Path
) -> None:
    (tmp_path / "signer.0.next").write_bytes(b"half")
    assert list(spools_of(tmp_path, "signer")) == [_file(tmp_path)]
    assert not (tmp_path / "signer.0.next").exists()


def test_on_a_full_disk_nothing_half_written_is_read(
    spool: SpanSpool, monkeypatch: pytest.MonkeyPatch, torn: Torn
) -> None:
    spool.append(b"one", 1)
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, place: write(descriptor, data[:7], place))
    with pytest.raises(OSError, match="full"):
        spool.append(b"two", 1)
    monkeypatch.undo()
    spool.append(b"three", 1)
    assert b"".join(_drain(spool)) == b"onethree"
    assert torn.size == 0


def test_memory_is_bounded_and_read_as_a_file_is() -> None:
    memory = MemorySpool(10)
    assert memory.append(b"12345", 1)
    assert memory.append(b"67890", 1)
    assert not memory.append(b"x", 1)
    assert _drain(memory) == [b"1234567890"]
    assert memory.append(b"x", 1)
    assert memory.size_bytes == 1
