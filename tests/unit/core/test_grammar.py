import json
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.canonical import format_time, from_hex, to_hex
from services.core.entries import Kind, Leaf, check_body
from services.core.errors import Reason, WalletError
from services.core.grammar import MAX_OPEN_REQUESTS, MAX_SIGNED, State, advance

BUNDLES = Path(__file__).parents[2] / "vectors" / "bundles"
SECOND = timedelta(seconds=1)


class Entry:
    """One entry of an example bundle, with a body of its own to change."""

    def __init__(self, entry):
        self.leaf = Leaf.decode(b64decode(entry["leaf"]))
        self.kind, self.at = self.leaf.kind, self.leaf.at
        self.body = json.loads(b64decode(entry["body"]))

    def enter(self, head, **options):
        check_body(self.kind, self.body)
        return advance(head, self.kind, self.body, self.at, trace_id=self.leaf.trace_id, **options)

    def with_body(self, **changes):
        self.body = {**self.body, **changes}
        return self


def entries(name):
    return [Entry(entry) for entry in json.loads((BUNDLES / name / "bundle.json").read_bytes())["entries"]]


def play(link, head=None):
    for entry in link:
        entry.at = max(entry.at, head.at) if head else entry.at
        head = entry.enter(head)
    return head


def picked(name, steps):
    return [entries(name)[step] for step in steps]


def entered_at(at, entry):
    entry.at = at
    return entry


def refused(reason, entry, head, field=None, **options):
    with pytest.raises(WalletError) as caught:
        entry.enter(head, **options)
    assert caught.value.reason is reason, caught.value
    assert {"field", "rule"} <= caught.value.details.keys()
    if field:
        assert caught.value.details["field"] == field, caught.value


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("plain", "BUILT SIGNED SUBMITTED SUBMITTED INCLUDED SAFE FINALIZED"),
        ("anchored", "BUILT SIGNED SUBMITTED SUBMITTED INCLUDED SAFE FINALIZED"),
        ("create", "BUILT SIGNED SUBMITTED SUBMITTED INCLUDED SAFE FINALIZED"),
        ("denied", "FAILED"),
        ("bump", "BUILT SIGNED SUBMITTED SUBMITTED SUBMITTED SUBMITTED SUBMITTED SUBMITTED INCLUDED SAFE FINALIZED"),
        (
            "reorg",
            "BUILT SIGNED SUBMITTED SUBMITTED INCLUDED SUBMITTED SUBMITTED SUBMITTED INCLUDED SAFE FINALIZED",
        ),
    ],
)
def test_the_example_links_are_accepted(name, states):
    head, seen = None, []
    for step, entry in enumerate(entries(name)):
        head = entry.enter(head).with_leaf_hash(bytes([step]) * 32)
        assert (head.step, head.at, head.leaf_hash) == (step, entry.at, bytes([step]) * 32)
        seen.append(head.state)
    assert seen == states.split()


@pytest.mark.parametrize(
    ("name", "steps", "next_step"),
    [
        *[("plain", [], step) for step in range(1, 7)],
        *[("plain", [0], step) for step in (0, 2, 3, 4, 6)],
        *[("plain", [0, 1], step) for step in (1, 3, 4)],
        *[("plain", [0, 1, 2], step) for step in (1, 2, 4, 6)],
        *[("plain", [0, 1, 2, 3], step) for step in (1, 2, 3)],
        *[("plain", [0, 1, 2, 3, 4], step) for step in (0, 1, 2, 3, 4)],
        *[("plain", [0, 1, 2, 3, 5], step) for step in (4, 5)],
        *[("reorg", [0, 1, 2, 3], step) for step in (5, 7)],
        *[("reorg", [0, 1, 2, 3, 4], step) for step in (8, 9)],  # another block, not revoked
        *[("reorg", [0, 1, 2, 3, 4, 5], step) for step in (5,)],
        *[("bump", [0], step) for step in (4,)],  # the last intent is not signed
        *[("bump", [0, 1, 2, 3, 4], step) for step in (4,)],
        *[("bump", [0, 1, 2, 3, 4, 5, 6], step) for step in (8,)],  # its transaction is not answered
    ],
)
def test_order(name, steps, next_step):
    head, entry = play(picked(name, steps)), entries(name)[next_step]
    refused(Reason.OUT_OF_ORDER, entered_at(head.at, entry) if head else entry, head)


@pytest.mark.parametrize("steps", [[0, 1, 2, 3, 6], [0, 1, 2, 3, 5, 6], [0, 1, 2, 3, 4, 6]])
def test_statuses_may_be_jumped(steps):
    assert play(picked("plain", steps)).state is State.FINALIZED


@pytest.mark.parametrize(("name", "last"), [("plain", 7), ("denied", 1)])
def test_nothing_follows_a_closed_link(name, last):
    head = play(entries(name)[:last])
    for entry in [*entries("plain"), entries("reorg")[5]]:
        refused(Reason.LINK_CLOSED, entry, head)
    with pytest.raises(WalletError) as caught:
        advance(head, Kind.POLICY, {}, head.at, trace_id=head.trace_id)
    assert caught.value.reason is Reason.LINK_CLOSED


def test_late_requests_and_responses_are_entered_until_finalized():
    link = picked("plain", [0, 1, 2, 2, 3, 4, 5])
    link[3].with_body(node="anvil-1")
    head = play(link)
    late = [entered_at(head.at, entry) for entry in entries("plain")]
    assert late[3].with_body(node="anvil-1").enter(head).state is State.SAFE
    assert late[2].with_body(node="anvil-2").enter(head).state is State.SAFE


def test_a_signature_that_was_under_way_is_entered_after_the_inclusion():
    assert play(picked("bump", [0, 1, 2, 3, 4, 5, 6, 7, 8])).state is State.INCLUDED
    head = play(picked("plain", [0, 1, 2, 3]))
    head = play([entries("plain")[4]], entered_at(head.at, entries("plain")[0]).enter(head))
    failed = entries("plain")[1].with_body(
        status="timeout", error="late", **dict.fromkeys(("r", "s", "y_parity", "raw_tx", "tx_hash"))
    )
    assert entered_at(head.at, failed).enter(head).state is State.INCLUDED


def test_failed_signatures_leave_the_intent_waiting():
    link = [*picked("plain", [0, 1, 1]), *entries("plain")[1:3]]
    nothing = dict.fromkeys(("r", "s", "y_parity", "raw_tx", "tx_hash"))
    link[1].with_body(status="failed", error="session lost", **nothing)
    link[2].with_body(status="timeout", error="no answer", **nothing)
    assert play(link[:3]).state is State.BUILT
    assert play(link).state is State.SUBMITTED


def test_inclusion_needs_an_http_answer_not_a_result():
    link = picked("plain", [0, 1, 2, 3])
    known = to_hex(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"already known"}}')
    link[3].with_body(body=known, tx_hash=None)
    assert play([*link, entries("plain")[4]]).state is State.INCLUDED
    link[3].with_body(http_status=None, headers={}, body="0x")
    refused(Reason.OUT_OF_ORDER, entries("plain")[4], play(link))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tx_sign_hash", "0x" + "11" * 32),
        ("signing_digest", "0x" + "11" * 32),
        ("account", "eip155:1:0x6d29155348045e352a5c0e4d0e48d9a8a6dba5e6"),
        ("to", None),
        ("to", "0x" + "11" * 20),
        ("value_wei", "1"),
        ("data", "0x00"),
    ],
)
def test_an_intent_agrees_with_its_unsigned_transaction(field, value):
    refused(Reason.INVALID_REQUEST, entries("plain")[0].with_body(**{field: value}), None, field)


def test_all_intents_of_a_link_share_their_terms():
    head = play(picked("bump", [0, 1]))
    foreign = entries("plain")[0]
    foreign.leaf, foreign.at = entries("bump")[0].leaf, head.at
    refused(Reason.INVALID_REQUEST, foreign, head, "from")


def test_a_denied_intent_stands_alone():
    head = play(picked("bump", [0, 1, 2, 3]))
    bump = entries("bump")[4]
    bump.body["policy"]["decision"] = "deny"
    refused(Reason.OUT_OF_ORDER, bump, head, "policy.decision")


def test_a_signature_names_its_transaction():
    head = play(picked("plain", [0]))
    refused(Reason.INVALID_REQUEST, entries("plain")[1].with_body(tx_hash="0x" + "11" * 32), head, "tx_hash")


def call(**members):
    raw_tx = entries("plain")[1].body["raw_tx"]
    sent = {"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransaction", "params": [raw_tx], **members}
    return to_hex(json.dumps({name: value for name, value in sent.items() if value is not ...}).encode())


@pytest.mark.parametrize(
    "body",
    [
        call(jsonrpc="1.0"),
        call(method="eth_call"),
        call(id=None),
        call(id=True),
        call(id=...),
        call(id="x" * 65),
        call(id=2**60),
        call(extra=1),
        call(params=[]),
        call(params=["0x00", "0x01"]),
        call(params=[1]),
        call(params=["0x02"]),
        call(params=["zz"]),
        to_hex(b"[]"),
        to_hex(b"\xff"),
        to_hex(b"[" * 100_000),
        to_hex(from_hex(call())[:-1] + b',"id":1}'),
    ],
)
def test_a_request_carries_a_signed_transaction_of_its_link(body):
    head = play(picked("plain", [0, 1]))
    refused(Reason.INVALID_REQUEST, entries("plain")[2].with_body(body=body), head, "body")


def test_a_batch_index_lies_within_its_batch():
    head = play(picked("plain", [0, 1]))
    batch = {"sha256": "0x" + "11" * 32, "index": 1, "size": 1}
    refused(Reason.INVALID_REQUEST, entries("plain")[2].with_body(batch=batch), head, "batch.index")
    assert entries("plain")[2].with_body(batch={**batch, "index": 0}).enter(head).state is State.SUBMITTED


def answer(**members):
    tx_hash = entries("plain")[1].body["tx_hash"]
    return to_hex(json.dumps({"jsonrpc": "2.0", "id": 1, "result": tx_hash, **members}).encode())


@pytest.mark.parametrize(
    ("body", "states_result"),
    [
        (answer(), True),
        (answer(error=None), True),
        (answer(jsonrpc="1.0"), False),
        (answer(id=2), False),
        (answer(id="1"), False),
        (answer(id=True), False),
        (answer(result="0x" + "11" * 32), False),
        (answer(result=None), False),
        (answer(error={"code": -1}), False),
        (to_hex(b"<html>"), False),
        ("0x", False),
    ],
)
def test_tx_hash_states_the_nodes_result_and_nothing_else(body, states_result):
    head = play(picked("plain", [0, 1, 2]))
    told, untold = entries("plain")[3].with_body(body=body), entries("plain")[3].with_body(body=body, tx_hash=None)
    accepted, other = (told, untold) if states_result else (untold, told)
    assert accepted.enter(head).state is State.SUBMITTED
    refused(Reason.INVALID_REQUEST, other, head, "tx_hash")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"block_hash": "0x" + "11" * 32}, "block_hash"),
        ({"block_number": 3}, "block_number"),
        ({"logs_bloom": "0x" + "11" * 256}, "logs_bloom"),
        ({"sha3_uncles": "0x" + "11" * 32}, "sha3_uncles"),
        ({"header_rlp": "0x80"}, "block_hash"),
        ({"transaction_proof": ["0x80"]}, "transaction_proof"),
        ({"transaction_proof": ["0xc0"]}, "transaction_proof"),
        ({"transaction_proof": ["0xc22080"]}, "transaction_proof"),
        ({"transaction_proof": ["0xff"]}, "transaction_proof"),
    ],
)
def test_an_inclusion_agrees_with_its_header_and_its_link(changes, field):
    head = play(picked("plain", [0, 1, 2, 3]))
    refused(Reason.INVALID_REQUEST, entries("plain")[4].with_body(**changes), head, field)


def test_safe_and_finalized_need_enough_nodes():
    head = play(picked("plain", [0, 1, 2, 3]))
    assert entries("plain")[4].enter(head, min_agreeing_nodes=2).state is State.INCLUDED
    refused(Reason.INVALID_REQUEST, entries("plain")[5], head, "agreeing_nodes", min_agreeing_nodes=2)
    two = entries("plain")[5].with_body(agreeing_nodes=["anvil-0", "anvil-1"])
    assert two.enter(head, min_agreeing_nodes=2).state is State.SAFE


def test_a_revocation_names_the_current_block():
    head = play(picked("reorg", [0, 1, 2, 3, 4]))
    refused(Reason.OUT_OF_ORDER, entries("reorg")[5].with_body(block_hash="0x" + "11" * 32), head, "block_hash")


@pytest.mark.parametrize(("step", "field"), [(0, "requested_at"), (2, "sent_at"), (3, "received_at")])
def test_no_time_runs_ahead_of_the_log(step, field):
    head = play(entries("plain")[:step]) if step else None
    entry = entries("plain")[step]
    limit = entry.at + 5 * SECOND
    assert entry.with_body(**{field: format_time(limit)}).enter(head).step == step
    beyond = format_time(limit + timedelta(microseconds=1))
    refused(Reason.CLOCK_SKEW, entry.with_body(**{field: beyond}), head, field)


@pytest.mark.parametrize(("step", "field"), [(2, "sent_at"), (3, "received_at")])
def test_no_time_lies_before_its_cause(step, field):
    link = entries("plain")
    head = play(link[:step])
    cause = link[1].at if step == 2 else datetime.fromisoformat(link[2].body["sent_at"])
    limit = cause - 5 * SECOND
    assert link[step].with_body(**{field: format_time(limit)}).enter(head).step == step
    before = format_time(limit - timedelta(microseconds=1))
    refused(Reason.CLOCK_SKEW, link[step].with_body(**{field: before}), head, field)


def test_a_block_is_not_older_than_its_intent():
    def inclusion_with_intent_at(shift):
        link = entries("plain")
        for entry in link:
            entry.at += shift
        for entry, field in ((link[2], "sent_at"), (link[3], "received_at")):
            entry.with_body(**{field: format_time(entry.at)})
        return link[4], play(link[:4])

    link = entries("plain")
    fields = from_hex(link[4].body["header_rlp"])
    intent_s = int(link[0].at.timestamp())
    timestamp = next(  # the only integer of the header near the intent
        second for second in range(intent_s - 60, intent_s + 60) if b"\x84" + second.to_bytes(4, "big") in fields
    )
    limit = datetime.fromtimestamp(timestamp + 15, UTC) - link[0].at
    entry, head = inclusion_with_intent_at(limit)
    assert entry.enter(head).state is State.INCLUDED
    entry, head = inclusion_with_intent_at(limit + timedelta(microseconds=1))
    refused(Reason.CLOCK_SKEW, entry, head, "header_rlp")


def test_the_logs_clock_never_goes_back():
    head = play(picked("plain", [0]))
    entry = entries("plain")[1]
    entry.at = head.at - timedelta(microseconds=1)
    refused(Reason.CLOCK_SKEW, entry, head, "at")
    entry.at = head.at
    assert entry.enter(head).state is State.SIGNED


def test_one_trace_per_link():
    head = play(picked("plain", [0]))
    entry = entries("plain")[1]
    with pytest.raises(WalletError, match="trace_id"):
        advance(head, entry.kind, entry.body, entry.at, trace_id="1" * 32)


def test_attempts_rise_per_node():
    head = play(picked("plain", [0, 1, 2]))
    refused(Reason.OUT_OF_ORDER, entries("plain")[2], head, "attempt")
    head = entries("plain")[2].with_body(attempt=5).enter(head)
    refused(Reason.OUT_OF_ORDER, entries("plain")[2].with_body(attempt=4), head, "attempt")
    assert entries("plain")[2].with_body(node="anvil-1", attempt=4).enter(head).step == 4


def test_a_long_link_keeps_a_small_head():
    head = play(picked("plain", [0, 1]))
    for attempt in range(1, 1_001):
        head = entries("plain")[2].with_body(attempt=attempt).enter(head)
    assert len(repr(head)) < 32_768
    oldest = 1_000 - MAX_OPEN_REQUESTS + 1
    refused(Reason.OUT_OF_ORDER, entries("plain")[3].with_body(attempt=oldest - 1), head, "attempt")
    assert entries("plain")[3].with_body(attempt=oldest).enter(head).step == 1_002


def test_fee_bumps_are_bounded():
    head = play(picked("plain", [0, 1]))
    for number in range(MAX_SIGNED - 1):
        again = head.signed[0]._replace(tx_hash=f"0x{number:064x}")
        head = head._replace(signed=(*head.signed, again))
    refused(Reason.OUT_OF_ORDER, entered_at(head.at, entries("plain")[0]), head, "kind")


@pytest.mark.parametrize("kind", [Kind.POLICY, Kind.KEY, Kind.EXPORT, Kind.ARCHIVE])
def test_administrative_links_are_free_and_apart(kind):
    intent = entries("plain")[0]
    head = advance(None, kind, {}, intent.at, trace_id="1" * 32)
    head = advance(head, Kind.POLICY, {"any": 1}, intent.at, trace_id="2" * 32)
    assert (head.state, head.step) == (State.ADMINISTRATIVE, 1)
    for entry in entries("plain"):
        entry.at = intent.at
        refused(Reason.OUT_OF_ORDER, entry, head)
    with pytest.raises(WalletError) as caught:
        advance(intent.enter(None), kind, {}, intent.at, trace_id=intent.leaf.trace_id)
    assert caught.value.reason is Reason.OUT_OF_ORDER


@pytest.mark.parametrize("name", ["bump", "reorg"])
@given(st.data())
def test_whatever_is_accepted_is_a_link(name, data):
    """Entries of a real link in any order, repeated at will: the accepted ones obey the page, counted anew here."""
    pool, head, accepted = entries(name), None, []
    for step in data.draw(st.lists(st.integers(0, len(pool) - 1), max_size=60)):
        entry = pool[step]
        entry.at = max(entry.at, head.at) if head else entry.at
        try:
            head = entry.enter(head)
        except WalletError:
            continue
        accepted.append((entry.kind, step, entry.body))
    kinds = [kind for kind, _, _ in accepted]
    assert kinds[:1] in ([], [Kind.INTENT])
    successes = kinds.count(Kind.SIGNATURE)
    assert successes <= kinds.count(Kind.INTENT) <= successes + 1
    requested, answered, block_hash = set(), set(), None
    for position, (kind, _, body) in enumerate(accepted):
        if kind is Kind.REQUEST:
            assert (body["node"], body["attempt"]) not in requested
            requested.add((body["node"], body["attempt"]))
        elif kind is Kind.RESPONSE:
            assert (body["node"], body["attempt"]) in requested - answered
            answered.add((body["node"], body["attempt"]))
        elif kind is Kind.INCLUSION:
            assert answered
            assert block_hash in (None, body["block_hash"])
            block_hash = body["block_hash"]
            assert body["status"] != "finalized" or position == len(accepted) - 1
        elif kind is Kind.REVOCATION:
            assert block_hash == body["block_hash"]
            block_hash = None
