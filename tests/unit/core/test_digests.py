import coincurve
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.digests import (
    CURVE_ORDER,
    Digest,
    Signature,
    TokenMade,
    keccak256,
    low_s,
    recover,
    recover_all,
    recover_public_key,
    split_signature,
)
from services.core.errors import Reason, WalletError

KEY = coincurve.PrivateKey(b"\x46" * 32)
PUBLIC_KEY = KEY.public_key.format()


def test_keccak_is_not_sha3() -> None:
    # The Yellow Paper's KEC of the empty string; FIPS 202 SHA3-256 would begin with a7ff.
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


@settings(max_examples=50)
@given(st.binary(min_size=32, max_size=32), st.booleans())
def test_a_token_signature_gains_its_recovery_bit(digest: bytes, high_s: bool) -> None:
    made = KEY.sign_recoverable(digest, hasher=None)
    r, s = split_signature(made[:64])
    # A token answers with either s; both must end as the low one.
    signature = recover(Digest(digest), r, CURVE_ORDER - s if high_s else s, PUBLIC_KEY)
    assert signature == Signature(r, s, made[64])
    assert recover_public_key(Digest(digest), signature) == PUBLIC_KEY


def test_low_s_keeps_a_low_s() -> None:
    half = CURVE_ORDER // 2
    assert low_s(5, half) == (5, half)
    assert low_s(5, half + 1) == (5, half)
    assert low_s(5, CURVE_ORDER - 1) == (5, 1)


def test_what_does_not_verify_is_refused() -> None:
    digest = keccak256(b"transfer")
    r, s = split_signature(KEY.sign_recoverable(digest, hasher=None)[:64])
    other_key = coincurve.PrivateKey(b"\x47" * 32).public_key.format()
    for arguments in (
        (keccak256(b"other"), r, s, PUBLIC_KEY),
        (digest, r, s, other_key),
        (digest, r + 1, s, PUBLIC_KEY),
        (digest, r, s + 1, PUBLIC_KEY),
        (digest, 0, s, PUBLIC_KEY),
        (digest, r, 0, PUBLIC_KEY),
        (digest, CURVE_ORDER, s, PUBLIC_KEY),
        (digest, r, CURVE_ORDER, PUBLIC_KEY),
        (digest, 5, s, PUBLIC_KEY),  # no point of the curve has x = 5
    ):
        with pytest.raises(WalletError) as refusal:
            recover(*arguments)
        assert refusal.value.reason is Reason.SIGNATURE_INVALID


@settings(max_examples=30)
@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(1, 3), st.booleans()), max_size=8))
def test_many_signatures_gain_theirs_at_once(items: list[tuple[bytes, int, bool]]) -> None:
    made, expected = [], []
    for digest, number, high_s in items:
        key = coincurve.PrivateKey(bytes([number]) * 32)
        recoverable = key.sign_recoverable(digest, hasher=None)
        r, s = split_signature(recoverable[:64])
        raw = r.to_bytes(32, "big") + (CURVE_ORDER - s if high_s else s).to_bytes(32, "big")
        made.append(TokenMade(raw, Digest(digest), key.public_key.format()))
        expected.append(Signature(r, s, recoverable[64]))
    assert recover_all(made) == expected


def test_of_many_the_wrong_ones_are_refused_and_hurt_no_neighbour() -> None:
    digest = keccak256(b"transfer")
    recoverable = KEY.sign_recoverable(digest, hasher=None)
    right = TokenMade(recoverable[:64], digest, PUBLIC_KEY)
    other_key = coincurve.PrivateKey(b"\x47" * 32).public_key
    wrong = [
        right._replace(raw_signature=bytes(64)),
        right._replace(raw_signature=bytes(63)),
        right._replace(raw_signature=b"\xff" * 64),
        right._replace(raw_signature=recoverable[32:64] + recoverable[:32]),
        right._replace(digest=keccak256(b"other")),
        right._replace(public_key=other_key.format()),
        # The same x with the other y is another key.
        right._replace(public_key=bytes([PUBLIC_KEY[0] ^ 1]) + PUBLIC_KEY[1:]),
        right._replace(public_key=KEY.public_key.format(compressed=False)),
        right._replace(public_key=b"\x02" + bytes(31) + b"\x05"),  # no point of the curve has x = 5
    ]
    outcomes = recover_all([made for one in wrong for made in (right, one)])
    assert outcomes[::2] == [Signature(*split_signature(recoverable[:64]), recoverable[64])] * len(wrong)
    for outcome in outcomes[1::2]:
        assert isinstance(outcome, WalletError)
        assert outcome.reason is Reason.SIGNATURE_INVALID
    assert recover_all([]) == []


def test_out_of_range_signatures_cannot_exist() -> None:
    for parts in ((0, 1, 0), (1, 0, 0), (CURVE_ORDER, 1, 0), (1, CURVE_ORDER // 2 + 1, 0), (1, 1, 2), (1, 1, -1)):
        with pytest.raises(WalletError, match="SIGNATURE_INVALID"):
            Signature(*parts)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_token_signature_has_64_bytes(size: int) -> None:
    with pytest.raises(WalletError, match="SIGNATURE_INVALID"):
        split_signature(bytes(size))
