"""Velocity in one batch: however it is split, no window holds more than its limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.core.addresses import Address
from services.signer.policy import Count
from services.signer.rules import Asset, Window
from services.signer.velocity import Candidate, Spent, admit, with_spent

_ACCOUNTS = (Address(b"\x01" * 20), Address(b"\x02" * 20))
_ASSETS = (Asset(1, None), Asset(1, Address(b"\xaa" * 20)))
_WINDOWS = (Window(60, 100), Window(3600, 250))


def _candidates(amounts: list[tuple[int, int, int]]) -> list[Candidate]:
    return [
        Candidate(f"t-{place}", _ACCOUNTS[account], Count(_ASSETS[asset], amount, "assets.x", _WINDOWS))
        for place, (account, asset, amount) in enumerate(amounts)
    ]


def _nothing(candidates: list[Candidate]) -> Spent:
    return {(one.purse, window.window_s): 0 for one in candidates for window in _WINDOWS}


_amounts = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(1, 120)), max_size=12)


@given(_amounts, st.integers(0, 12))
def test_no_split_of_a_batch_passes_a_limit(amounts: list[tuple[int, int, int]], cut: int) -> None:
    candidates = _candidates(amounts)
    whole = admit(candidates, _nothing(candidates))
    spent = _nothing(candidates)
    refused: dict[str, str] = {}
    for part in (candidates[:cut], candidates[cut:]):
        now = admit(part, spent)
        spent = with_spent(spent, [one for one in part if one.link_id not in now])
        refused |= now
    assert refused == whole
    assert all(total <= _WINDOWS[0].limit for (_, window_s), total in spent.items() if window_s == 60)
    assert all(total <= _WINDOWS[1].limit for (_, window_s), total in spent.items() if window_s == 3600)


@given(_amounts)
def test_who_is_refused_would_not_have_fitted(amounts: list[tuple[int, int, int]]) -> None:
    candidates = _candidates(amounts)
    refused = admit(candidates, _nothing(candidates))
    for place, one in enumerate(candidates):
        before = sum(
            other.counted.amount
            for other in candidates[:place]
            if other.purse == one.purse and other.link_id not in refused
        )
        assert (one.link_id in refused) == (before + one.counted.amount > 100)


def test_the_text_names_rule_amount_and_window() -> None:
    candidates = _candidates([(0, 0, 90), (0, 0, 11), (0, 1, 100)])
    assert admit(candidates, _nothing(candidates)) == {"t-1": "assets.x.velocity: 11 on top of 90 in 60 s is above 100"}
