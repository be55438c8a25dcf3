import json
from base64 import b64decode
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.canonical import canonical_json, from_hex, parse_canonical
from services.core.entries import MAX_BODY_SIZE, MAX_LEAF_SIZE, Kind, Leaf, body_commitment, check_body, leaf_hash
from services.core.errors import Reason, WalletError

BUNDLES = Path(__file__).parents[2] / "vectors" / "bundles"
ENTRIES = [
    entry for path in sorted(BUNDLES.glob("*/bundle.json")) for entry in json.loads(path.read_bytes())["entries"]
]
LEAF = Leaf(
    kind=Kind.REQUEST,
    link_id="gap:eip155.1:0xab:7",
    step=3,
    prev=bytes(range(32)),
    at=datetime(2026, 11, 24, 6, 26, 26, 518_081, UTC),
    trace_id="1a038a78e9f6919f60b8be880da66c5b",
    span_id="ac26cae99ff34fc1",
    body=bytes(range(32, 64)),
)


def body_of(kind):
    """A body of `kind` from the example bundles, fresh."""
    return next(
        json.loads(b64decode(entry["body"]))
        for entry in ENTRIES
        if json.loads(b64decode(entry["leaf"]))["kind"] == kind.value
    )


def test_the_example_bundles_are_read_and_written_byte_for_byte():
    for entry in ENTRIES:
        data, body = b64decode(entry["leaf"]), b64decode(entry["body"])
        leaf = Leaf.decode(data)
        assert leaf.encode() == data
        assert body_commitment(from_hex(entry["salt"]), body) == leaf.body
        check_body(leaf.kind, parse_canonical(body))


@given(
    st.builds(
        Leaf,
        kind=st.sampled_from(Kind),
        link_id=st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True),
        step=st.integers(1, 2**40),
        prev=st.binary(min_size=32, max_size=32),
        at=st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)),
        trace_id=st.from_regex("1[0-9a-f]{31}", fullmatch=True),
        span_id=st.from_regex("1[0-9a-f]{15}", fullmatch=True),
        body=st.binary(min_size=32, max_size=32),
    )
)
def test_leaves_are_canonical_json(leaf):
    data = leaf.encode()
    assert canonical_json(json.loads(data)) == data
    assert len(data) <= MAX_LEAF_SIZE
    assert Leaf.decode(data) == leaf


def test_the_first_leaf_has_no_prev():
    leaf = replace(LEAF, step=0, prev=b"")
    assert json.loads(leaf.encode())["prev"] == ""
    assert Leaf.decode(leaf.encode()) == leaf
    assert leaf_hash(leaf.encode()) == sha256(b"\0" + leaf.encode()).digest()


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("link_id", ""),
        ("link_id", "a" * 65),
        ("link_id", 'a"b'),
        ("link_id", "a\n"),
        ("step", -1),
        ("step", 0),
        ("prev", b""),
        ("prev", bytes(31)),
        ("trace_id", "0" * 32),
        ("trace_id", "A" * 32),
        ("span_id", "0" * 16),
        ("span_id", "1" * 15),
        ("body", bytes(31)),
    ],
)
def test_a_leaf_with_a_bad_member_is_not_written(member, value):
    with pytest.raises(WalletError) as caught:
        replace(LEAF, **{member: value}).encode()
    assert caught.value.details["field"] in (member, "prev")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"v": 2}, "is 1"),
        ({"v": True}, "is 1"),
        ({"extra": 1}, "nine members"),
        ({"kind": "guess"}, "known kind"),
        ({"kind": 1}, "is text"),
        ({"step": "3"}, "whole number"),
        ({"step": 3.5}, "whole number"),
        ({"prev": "0x"}, "32-byte"),
        ({"at": "2026-11-24T06:26:26Z"}, "UTC time"),
        ({"body": "0x00"}, "32-byte"),
        ({"link_id": "x" * 3_000}, "2048"),
    ],
)
def test_other_leaves_are_refused(change, rule):
    with pytest.raises(WalletError, match=rule):
        Leaf.decode(canonical_json({**json.loads(LEAF.encode()), **change}))


def test_the_limits_of_a_commitment():
    assert body_commitment(bytes(32), b"{}") == sha256(bytes(32) + b"{}").digest()
    body_commitment(bytes(32), bytes(MAX_BODY_SIZE))
    with pytest.raises(WalletError) as caught:
        body_commitment(bytes(32), bytes(MAX_BODY_SIZE + 1))
    assert caught.value.reason is Reason.PAYLOAD_TOO_LARGE
    with pytest.raises(WalletError, match="salt"):
        body_commitment(bytes(31), b"{}")


LINK_KINDS = [Kind.INTENT, Kind.SIGNATURE, Kind.REQUEST, Kind.RESPONSE, Kind.INCLUSION, Kind.REVOCATION]


@pytest.mark.parametrize("kind", LINK_KINDS)
def test_every_listed_field_is_required_and_typed(kind):
    body = body_of(kind)
    check_body(kind, {**body, "further": {"any": 1}})
    for field in body:
        with pytest.raises(WalletError, match="is present") as caught:
            check_body(kind, {name: value for name, value in body.items() if name != field})
        assert caught.value.details["field"] == field
        with pytest.raises(WalletError):
            check_body(kind, {**body, field: True})


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Kind.INTENT, "chain_id", "eip155:01"),
        (Kind.INTENT, "chain_id", "eip155:0"),
        (Kind.INTENT, "from", "0x56A8fd222855f32a369f6918c1ba5e443291fcff"),
        (Kind.INTENT, "to", "0x"),
        (Kind.INTENT, "value_wei", "01"),
        (Kind.INTENT, "value_wei", "-1"),
        (Kind.INTENT, "value_wei", 1),
        (Kind.INTENT, "value_wei", str(2**256)),
        (Kind.INTENT, "data", ""),
        (Kind.INTENT, "data", "0x" + "00" * (128 * 1024 + 1)),
        (Kind.INTENT, "unsigned_tx", "0x"),
        (Kind.INTENT, "key_version", -1),
        (Kind.INTENT, "policy", {"version": 1, "sha256": "0x" + "00" * 32, "decision": "maybe", "rules": []}),
        (Kind.INTENT, "policy", {"version": 1, "sha256": "0x" + "00" * 32, "decision": "deny", "rules": [1]}),
        (Kind.INTENT, "policy", {"version": 1, "sha256": "0x" + "00" * 32, "decision": "deny"}),
        (Kind.INTENT, "requested_at", "2026-11-24T06:26:26Z"),
        (Kind.INTENT, "supersedes", "no spaces"),
        (Kind.SIGNATURE, "status", "maybe"),
        (Kind.SIGNATURE, "algorithm", "eddsa"),
        (Kind.SIGNATURE, "y_parity", 2),
        (Kind.SIGNATURE, "r", None),
        (Kind.SIGNATURE, "error", "boom"),
        (Kind.SIGNATURE, "duration_ms", -0.1),
        (Kind.SIGNATURE, "duration_ms", None),
        (Kind.SIGNATURE, "token", None),
        (Kind.SIGNATURE, "token", {"label": "a", "serial": "b"}),
        (Kind.REQUEST, "node", "https://node.example/key"),
        (Kind.REQUEST, "attempt", 0),
        (Kind.REQUEST, "batch", {"sha256": "0x" + "00" * 32, "index": 0}),
        (Kind.RESPONSE, "headers", {"X-Node-Id": "a"}),
        (Kind.RESPONSE, "headers", {"x-node-id": 1}),
        (Kind.RESPONSE, "http_status", 99),
        (Kind.RESPONSE, "http_status", None),
        (Kind.RESPONSE, "http_status", 500),
        (Kind.INCLUSION, "status", "pending"),
        (Kind.INCLUSION, "agreeing_nodes", []),
        (Kind.INCLUSION, "agreeing_nodes", ["a", "a"]),
        (Kind.INCLUSION, "logs_bloom", "0x00"),
        (Kind.INCLUSION, "transaction_proof", []),
        (Kind.INCLUSION, "receipt_proof", ["0x"]),
        (Kind.REVOCATION, "reason", ""),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(kind, field, value):
    with pytest.raises(WalletError) as caught:
        check_body(kind, {**body_of(kind), field: value})
    named = str(caught.value.details["field"]).partition(".")[0]
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert named == field or (named, value) in {("tx_hash", None), ("tx_hash", 500)}


def test_a_failed_signature_and_a_missing_answer():
    nothing = dict.fromkeys(("r", "s", "y_parity", "raw_tx", "tx_hash", "duration_ms", "token"))
    failed = {**body_of(Kind.SIGNATURE), **nothing, "status": "timeout", "error": "no answer in 5 s"}
    check_body(Kind.SIGNATURE, failed)
    with pytest.raises(WalletError, match="error"):
        check_body(Kind.SIGNATURE, {**failed, "error": None})
    unanswered = {**body_of(Kind.RESPONSE), "http_status": None, "headers": {}, "body": "0x", "tx_hash": None}
    check_body(Kind.RESPONSE, unanswered)
    with pytest.raises(WalletError, match="no HTTP answer"):
        check_body(Kind.RESPONSE, {**unanswered, "body": "0x00"})
