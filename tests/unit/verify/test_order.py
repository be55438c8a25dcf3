"""Which entry may follow which, the state that a link proves, and the order of times."""

import pytest

from tests.unit.verify import forge
from tests.unit.verify.forge import Block, Draft, Tx, edited, iso, plain_link
from tests.unit.verify.verdict import failed, link_verdict, why

INTENT, SIGNATURE, REQUEST, RESPONSE, INCLUDED, SAFE, FINALIZED = range(7)
PROGRESS = ["BUILT", "SIGNED", "SUBMITTED", "INCLUDED", "SAFE", "FINALIZED"]


def mined(tx: Tx, at: float, *statuses: str, number: int = 77) -> list[Draft]:
    block = Block(forge.raw_tx(forge.signature(tx)), number=number)
    return [block.inclusion(status, at + i) for i, status in enumerate(statuses)]


def submitted(tx: Tx, at: float = 0.0, attempt: int = 1) -> list[Draft]:
    signed = forge.signature(tx, at + 0.1)
    times = (at + 0.2, at + 0.3)
    return [
        forge.intent(tx, at),
        signed,
        forge.request(signed, times[0], attempt),
        forge.response(signed, times[1], attempt),
    ]


def accepted(drafts: list[Draft], state: str | None = None) -> str | None:
    report = link_verdict(drafts, state=state)
    assert report.accepted, report.checks
    return report.state


def rejected_by(drafts: list[Draft], number: int, state: str | None = None) -> str:
    report = link_verdict(drafts, state=state)
    assert failed(report) == [number], report.checks
    return why(report)


# States


@pytest.mark.parametrize(
    ("entries", "state"),
    [(1, "BUILT"), (2, "SIGNED"), (3, "SUBMITTED"), (4, "SUBMITTED"), (5, "INCLUDED"), (6, "SAFE"), (7, "FINALIZED")],
)
def test_state_by_entries(entries: int, state: str) -> None:
    link = plain_link()[:entries]
    for asked in PROGRESS:
        report = link_verdict(link, state=asked)
        assert report.state == state
        assert report.accepted == (PROGRESS.index(asked) <= PROGRESS.index(state)), asked
        assert failed(report) in ([], [11])
    assert link_verdict(link).accepted == (state == "FINALIZED")
    assert not link_verdict(link, state="FAILED").accepted


def test_denied_is_closed_and_proves_nothing_else() -> None:
    denied = [forge.intent(Tx(), decision="deny")]
    assert accepted(denied) == "FAILED"
    assert accepted(denied, state="FAILED") == "FAILED"
    for asked in PROGRESS:
        rejected_by(denied, 11, state=asked)


def test_a_failed_signature_leaves_the_state_built() -> None:
    assert accepted([forge.intent(Tx()), forge.failed_signature()], state="BUILT") == "BUILT"
    rejected_by([forge.intent(Tx()), forge.failed_signature()], 11, state="SIGNED")


def test_an_unknown_state_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="no such state"):
        link_verdict(plain_link(), state="MINED")


# Order


@pytest.mark.parametrize("position", [SIGNATURE, REQUEST, RESPONSE, INCLUDED])
def test_nothing_comes_before_the_intent(position: int) -> None:
    report = link_verdict([plain_link()[position], *plain_link()])
    assert not report.accepted


def test_a_revocation_or_failure_alone_is_no_link() -> None:
    assert failed(link_verdict([forge.failed_signature()], state="BUILT")) == [8]
    alone = [forge.revocation(plain_link()[INCLUDED], 1.0)]
    assert "first entry" in rejected_by(alone, 11, state="SUBMITTED")


@pytest.mark.parametrize("what", ["request", "response", "revocation", "inclusion", "intent", "signature"])
def test_nothing_follows_finalized(what: str) -> None:
    link = plain_link()
    signed = link[SIGNATURE]
    unanswered = forge.request(signed, 0.4, 2)
    late = {
        "request": forge.request(signed, 9.0, 3),
        "response": forge.response(signed, 9.0, 2),
        "revocation": forge.revocation(link[INCLUDED], 9.0),
        "inclusion": edited(link, FINALIZED)[FINALIZED],
        "intent": forge.intent(Tx(fee=4_000_000_000), 9.0),
        "signature": forge.failed_signature(9.0),
    }
    link.insert(4, unanswered)
    late["inclusion"].at = 9.0
    assert accepted(link) == "FINALIZED"
    assert "follows FINALIZED" in rejected_by([*link, late[what]], 11)


@pytest.mark.parametrize("position", [SIGNATURE, REQUEST])
def test_nothing_follows_a_denial(position: int) -> None:
    link = [forge.intent(Tx(), decision="deny"), *plain_link()[1 : position + 1]]
    assert "follows FAILED" in rejected_by(link, 11, state="SIGNED")


def test_a_denial_follows_nothing() -> None:
    link = plain_link()[:2]
    assert "denied" in rejected_by(
        [*link, forge.intent(Tx(fee=4_000_000_000), 1.0, decision="deny")], 11, state="BUILT"
    )


def test_statuses_jump_but_never_stand_or_fall() -> None:
    base = submitted(Tx())
    assert accepted(base + mined(Tx(), 1.0, "finalized")) == "FINALIZED"
    assert accepted(base + mined(Tx(), 1.0, "safe", "finalized")) == "FINALIZED"
    assert accepted(base + mined(Tx(), 1.0, "included", "finalized")) == "FINALIZED"
    for statuses in [("included", "included"), ("safe", "safe"), ("safe", "included")]:
        assert "does not rise" in rejected_by(base + mined(Tx(), 1.0, *statuses, "finalized"), 11)


def test_another_block_needs_a_revocation() -> None:
    base = submitted(Tx())
    first, second = mined(Tx(), 1.0, "included"), mined(Tx(), 3.0, "included", "finalized", number=78)
    assert "no revocation" in rejected_by(base + first + second, 11)
    assert accepted([*base, *first, forge.revocation(first[0], 2.0), *second]) == "FINALIZED"
    assert accepted([*base, *first, forge.revocation(first[0], 2.0)], state="SUBMITTED") == "SUBMITTED"
    rejected_by([*base, *first, forge.revocation(first[0], 2.0)], 11, state="INCLUDED")
    wrong = forge.revocation(second[0], 2.0)
    assert "no inclusion names" in rejected_by([*base, *first, wrong, *second], 11)
    again = [forge.revocation(first[0], 2.0), forge.revocation(first[0], 2.5)]
    assert "no inclusion names" in rejected_by([*base, *first, *again, *second], 11)


def test_after_a_revocation_the_block_may_come_back() -> None:
    base, block = submitted(Tx()), mined(Tx(), 1.0, "included", "safe")
    back = mined(Tx(), 4.0, "included", "finalized")
    assert accepted([*base, *block, forge.revocation(block[0], 3.0), *back]) == "FINALIZED"


def test_a_revoked_inclusion_leaves_no_block_in_the_report() -> None:
    base, block = submitted(Tx()), mined(Tx(), 1.0, "included")
    report = link_verdict([*base, *block, forge.revocation(block[0], 3.0)], state="SUBMITTED")
    assert (report.block_number, report.block_hash, report.receipt_status) == (None, None, None)


def test_an_inclusion_needs_an_http_response_before_it() -> None:
    link = plain_link()
    silent = forge.no_answer()
    assert "no HTTP response" in rejected_by([*link[:3], *link[4:]], 11)
    assert "no HTTP response" in rejected_by([*link[:3], silent, *link[4:]], 11)
    late = forge.response(link[SIGNATURE], 2.5)
    assert "no HTTP response" in rejected_by([*link[:3], link[INCLUDED], late, *link[SAFE:]], 11)


# Fee bumps


def bump_link(mine: Tx, **second: object) -> list[Draft]:
    cheap, dear = Tx(fee=3_000_000_000), Tx(**({"fee": 4_000_000_000} | second))
    return submitted(cheap) + submitted(dear, 1.0, 2) + mined(mine, 2.0, "included", "safe", "finalized")


@pytest.mark.parametrize("fee", [3_000_000_000, 4_000_000_000])
def test_either_of_two_bids_may_be_mined(fee: int) -> None:
    link = bump_link(Tx(fee=fee))
    report = link_verdict(link)
    assert report.accepted
    assert report.tx_hash == forge.signature(Tx(fee=fee)).body["tx_hash"]


def test_a_bump_keeps_the_state_it_had() -> None:
    cheap = submitted(Tx())
    assert accepted([*cheap, forge.intent(Tx(fee=4_000_000_000), 1.0)], state="SUBMITTED") == "SUBMITTED"


def test_a_response_to_the_other_bid_is_no_response() -> None:
    cheap, dear = submitted(Tx()), submitted(Tx(fee=4_000_000_000), 1.0, 2)
    link = cheap + dear[:3] + mined(Tx(fee=4_000_000_000), 2.0, "finalized")
    assert "no HTTP response" in rejected_by(link, 11)


@pytest.mark.parametrize("second", [{"nonce": 1}, {"value": 1}, {"to": b"\x01" * 20}, {"data": b"\x01"}])
def test_all_intents_of_a_link_do_the_same(second: dict) -> None:
    assert "the intents differ" in rejected_by(bump_link(Tx(), **second), 7)


def test_one_success_per_intent() -> None:
    link = plain_link()
    assert "already has" in rejected_by([*link[:2], link[SIGNATURE], *link[2:]], 8)


def test_a_signature_belongs_to_the_latest_intent() -> None:
    cheap, dear = Tx(), Tx(fee=4_000_000_000)
    link = [forge.intent(cheap), forge.intent(dear, 0.01), forge.signature(cheap)]
    rejected_by(link, 8, state="SIGNED")


# Times


@pytest.mark.parametrize(
    ("position", "name"), [(INTENT, "requested_at"), (REQUEST, "sent_at"), (RESPONSE, "received_at")]
)
def test_a_time_may_run_five_seconds_ahead_of_its_entry(position: int, name: str) -> None:
    link = plain_link()
    at = link[position].at
    assert link_verdict(edited(link, position, **{name: iso(at + 5)})).accepted
    assert name in rejected_by(edited(link, position, **{name: iso(at + 5.000001)}), 12)


def test_a_request_may_be_asked_long_before() -> None:
    assert link_verdict(edited(plain_link(), INTENT, requested_at=iso(-86_400))).accepted


def test_sent_at_follows_the_signature() -> None:
    link = plain_link()
    at = link[SIGNATURE].at
    assert link_verdict(edited(link, REQUEST, sent_at=iso(at - 5))).accepted
    assert "before the signature" in rejected_by(edited(link, REQUEST, sent_at=iso(at - 5.000001)), 12)


def test_received_at_follows_sent_at() -> None:
    link = plain_link()
    assert link_verdict(edited(link, RESPONSE, received_at=iso(0.2 - 5))).accepted
    assert "before sent_at" in rejected_by(edited(link, RESPONSE, received_at=iso(0.2 - 5.000001)), 12)


def test_a_block_may_be_fifteen_seconds_older_than_the_intent() -> None:
    second = int(forge.START.timestamp())
    assert link_verdict(plain_link(timestamp=second - 15)).accepted
    assert "older than the intent" in rejected_by(plain_link(timestamp=second - 16), 12)


def test_at_never_decreases() -> None:
    link = plain_link()
    link[REQUEST].at = link[SIGNATURE].at
    link[REQUEST].body["sent_at"] = iso(link[REQUEST].at)
    assert link_verdict(link).accepted
    link[RESPONSE].at = link[REQUEST].at - 0.000001
    assert failed(link_verdict(link)) == [3]


@pytest.mark.parametrize(
    "value", ["2026-01-02T03:04:05Z", "2026-01-02T03:04:60.000000Z", "2026-13-02T03:04:05.000000Z"]
)
@pytest.mark.parametrize(
    ("position", "name"), [(INTENT, "requested_at"), (REQUEST, "sent_at"), (RESPONSE, "received_at")]
)
def test_a_time_has_one_form(position: int, name: str, value: str) -> None:
    rejected_by(edited(plain_link(), position, **{name: value}), 2)
