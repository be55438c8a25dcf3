"""The anchor: more than two thirds of the trusted power, this checkpoint's bytes, one meaning."""

import base64

import pytest

from tests.unit.verify import forge
from tests.unit.verify.forge_anchor import ABSENT, ABSENT_VOTE, FOR_BLOCK, FOR_NIL, Ledger
from tests.unit.verify.mutation import mutations, replaced
from tests.unit.verify.verdict import failed, verdict, why
from tools.verify import Report

BUNDLE = forge.seal([forge.intent(forge.Tx(), decision="deny")])
HASH = base64.b64encode(b"\x01" * 32).decode()


def anchored(ledger: Ledger, note: str = BUNDLE["checkpoint"]) -> Report:
    return verdict(BUNDLE | {"anchor": ledger.anchor(note)}, forge.trust(ledger=ledger.trust()))


def rejected(ledger: Ledger, **options: str) -> str:
    report = anchored(ledger, **options)
    assert failed(report) == [6]
    return why(report)


def test_accepts_a_block_of_several_transactions() -> None:
    report = anchored(Ledger())
    assert report.accepted
    assert report.anchor_height == 9


@pytest.mark.parametrize(
    "ledger",
    [
        Ledger(other_transactions=()),
        Ledger(commit_round=3),
        Ledger(app_hash=b""),
        Ledger(version_app=0),
        Ledger(flags=(FOR_BLOCK, FOR_BLOCK, FOR_NIL, FOR_BLOCK)),
        Ledger(powers=(7, 1, 1, 1), flags=(FOR_BLOCK, ABSENT, ABSENT, ABSENT)),
        Ledger(powers=(5,), flags=(FOR_BLOCK,)),
        Ledger(old=f"old 7\n{HASH}\n{HASH}\n"),
        Ledger(old="old 100\n"),
    ],
)
def test_accepts_what_a_ledger_may_write(ledger: Ledger) -> None:
    report = anchored(ledger)
    assert report.accepted, why(report)


@pytest.mark.parametrize(
    ("powers", "flags"),
    [
        ((1, 1, 1), (FOR_BLOCK, FOR_BLOCK, ABSENT)),
        ((1, 1, 1, 1), (FOR_BLOCK, FOR_BLOCK, FOR_NIL, ABSENT)),
        ((1, 1, 1, 1), (FOR_NIL, FOR_NIL, FOR_NIL, FOR_NIL)),
        ((4, 1, 1), (FOR_BLOCK, ABSENT, ABSENT)),
        ((9, 1, 1, 1), (ABSENT, FOR_BLOCK, FOR_BLOCK, FOR_BLOCK)),
    ],
)
def test_rejects_two_thirds_or_less(powers: tuple, flags: tuple) -> None:
    assert "two thirds" in rejected(Ledger(powers=powers, flags=flags))


@pytest.mark.parametrize(
    "ledger", [Ledger(commit_round=2**31), Ledger(parts_total=2**32), Ledger(evidence_hash=b"\x08" * 31)]
)
def test_rejects_what_no_ledger_writes(ledger: Ledger) -> None:
    rejected(ledger)


def test_rejects_a_zero_that_the_ledger_leaves_out() -> None:
    ledger = Ledger(version_app=0)
    anchor = ledger.anchor(BUNDLE["checkpoint"])
    anchor["header"]["version"]["app"] = "0"
    assert failed(verdict(BUNDLE | {"anchor": anchor}, forge.trust(ledger=ledger.trust()))) == [6]


def test_rejects_another_checkpoint() -> None:
    text = BUNDLE["checkpoint"].partition("\n\n")[0] + "\nextension\n"
    rejected(Ledger(), note=text + "\n" + forge.note_line(text))
    rejected(Ledger(), note=BUNDLE["checkpoint"] + "\n")
    rejected(Ledger(), note="")


@pytest.mark.parametrize(
    "old",
    [
        *("", "old\n", "old 07\n", "old -1\n", "new 0\n", "old 101\n", "old ٣\n", "old 7 \n"),
        *(f"old 0\n{HASH}\n", f"old 100\n{HASH}\n", "old 7\n" + f"{HASH}\n" * 64),
        *("old 7\nAAAA\n", "old 7\nnonsense\n"),
    ],
)
def test_rejects_a_malformed_add_checkpoint(old: str) -> None:
    rejected(Ledger(old=old))


def test_rejects_every_change_of_the_anchor() -> None:
    ledger = Ledger(flags=(FOR_BLOCK, FOR_NIL, FOR_BLOCK, FOR_BLOCK))
    anchor, trust = ledger.anchor(BUNDLE["checkpoint"]), forge.trust(ledger=ledger.trust())
    assert verdict(BUNDLE | {"anchor": anchor}, trust).accepted
    for path, mutated in mutations(anchor):
        # An integer past 2**53 is no strict JSON in the first place.
        assert failed(verdict(BUNDLE | {"anchor": mutated}, trust)) in ([6], [1]), path


@pytest.mark.parametrize(
    "change", [{"validator_address": "A" * 40}, {"signature": "AA=="}, {"timestamp": "2026-01-02T03:04:05Z"}]
)
def test_rejects_an_absent_vote_that_says_something(change: dict) -> None:
    ledger = Ledger()
    mutated = replaced(ledger.anchor(BUNDLE["checkpoint"]), ("commit", "signatures", 3), ABSENT_VOTE | change)
    report = verdict(BUNDLE | {"anchor": mutated}, forge.trust(ledger=ledger.trust()))
    assert failed(report) == [6]


def test_rejects_a_vote_counted_twice() -> None:
    ledger = Ledger(flags=(FOR_BLOCK, FOR_BLOCK, ABSENT, ABSENT))
    anchor = ledger.anchor(BUNDLE["checkpoint"])
    votes = anchor["commit"]["signatures"]
    for signatures in ([votes[0], votes[1], votes[0], votes[1]], [*votes[:2], votes[0], votes[3]], votes[:2]):
        mutated = replaced(anchor, ("commit", "signatures"), signatures)
        assert failed(verdict(BUNDLE | {"anchor": mutated}, forge.trust(ledger=ledger.trust()))) == [6]


def test_rejects_a_ledger_that_is_not_the_trusted_one() -> None:
    anchor = Ledger().anchor(BUNDLE["checkpoint"])
    stronger = Ledger(powers=(2, 1, 1, 1)).trust()
    for ledger in (
        stronger,
        Ledger().trust() | {"chain_id": "ledger-tesu"},
        Ledger(powers=(1, 1, 1, 1, 1), flags=()).trust(),
    ):
        assert failed(verdict(BUNDLE | {"anchor": anchor}, forge.trust(ledger=ledger))) == [6]


@pytest.mark.parametrize(
    "ledger",
    [
        {},
        [],
        {"chain_id": "", "validators": Ledger().trust()["validators"]},
        {"chain_id": "x", "validators": []},
        {"chain_id": "x", "validators": Ledger().trust()["validators"] * 2},
        {"chain_id": "x", "validators": [{"public_key": "AA==", "power": 1}]},
        {"chain_id": "x", "validators": [Ledger().trust()["validators"][0] | {"power": 0}]},
        {"chain_id": "x", "validators": [Ledger().trust()["validators"][0] | {"name": "a"}]},
    ],
)
def test_rejects_a_malformed_trusted_ledger(ledger: object) -> None:
    assert failed(
        verdict(BUNDLE | {"anchor": Ledger().anchor(BUNDLE["checkpoint"])}, forge.trust() | {"ledger": ledger})
    ) == [1]
