"""What signer and child say to each other arrives as it was said, however the pipe cuts it."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.digests import Digest
from services.core.errors import Reason, WalletError
from services.signer.backend import SealedLeaf
from services.signer.frames import (
    MAX_FRAME_BYTES,
    DigestToSign,
    TokenSignature,
    decode_request,
    decode_results,
    encode_request,
    encode_results,
    frame,
    receive_frame,
    split_frame,
)

LEAVES = [SealedLeaf(f"key-{number}:1", bytes([number]) * 256, bytes([number]) * 150) for number in range(3)]

digests = st.builds(DigestToSign, st.sampled_from(LEAVES), st.binary(min_size=32, max_size=32).map(Digest))
signed = st.builds(TokenSignature, st.binary(min_size=64, max_size=64), st.floats(0, 1e6, allow_nan=False))


@given(st.lists(digests, min_size=1, max_size=20), st.integers(1, 1_000))
def test_a_request_is_read_as_it_was_asked(asked: list[DigestToSign], chunk: int) -> None:
    assert decode_request(encode_request(asked, chunk)) == (asked, chunk)


@given(st.lists(signed, max_size=20), st.integers(0, 20))
def test_results_come_in_order_with_the_failures_among_them(results: list[TokenSignature], place: int) -> None:
    failed = WalletError(Reason.TOKEN_UNAVAILABLE, "the token is gone", origin="session")
    told = decode_results(encode_results([*results[:place], failed, *results[place:]]))
    error = told.pop(min(place, len(results)))
    assert told == results
    assert isinstance(error, WalletError)
    assert (error.reason, error.message, error.details) == (failed.reason, failed.message, {"origin": "session"})


@pytest.mark.parametrize("body", [b"\x00" * 72, b"\x01\xff\xff{}", b"\x01\x00\x02{}", b"\x01\x00\x02[]", b"\x07"])
def test_what_is_no_result_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="without results"):
        decode_results(body)


@given(st.lists(st.binary(max_size=100), max_size=5), st.integers(1, 50))
def test_frames_come_whole_however_they_are_cut(bodies: list[bytes], step: int) -> None:
    stream = b"".join(map(frame, bodies))
    received, found = bytearray(), []
    for start in range(0, len(stream), step):
        received += stream[start : start + step]
        while (body := split_frame(received)) is not None:
            found.append(body)
    assert found == bodies
    assert not received
    blocking = io.BytesIO(stream)
    assert [receive_frame(blocking) for _ in bodies] == bodies
    with pytest.raises(EOFError):
        receive_frame(blocking)


def test_a_frame_has_a_bound() -> None:
    with pytest.raises(ValueError, match="too large"):
        split_frame(bytearray((MAX_FRAME_BYTES + 1).to_bytes(4, "big")))
