"""Approvals as the log has them: what counts, and what counts for nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.wallet.v1 import evidence_pb2
from services.core.canonical import canonical_json, format_time, to_hex
from services.core.entries import Kind, Leaf, body_commitment, leaf_hash
from services.core.errors import Reason, WalletError
from services.signer.approvals import Quorum, check_quorum, read_link

LINK = "t-1:approval"
TERMS = b"\x07" * 32
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
SALT = bytes(32)
QUORUM = Quorum(2, 3600, ("ann", "bob", "cid", "requester"), frozenset({"requester"}))


def body(name: str = "ann", /, **changes: Any) -> dict[str, Any]:
    return {
        "act": "approval",
        "approver": name,
        "at": format_time(NOW),
        "decision": "approve",
        "expires_at": format_time(NOW + HOUR),
        "terms_sha256": to_hex(TERMS),
        "transfer_id": "t-1",
    } | changes


def entry(
    content: dict[str, Any] | bytes,
    at: datetime = NOW,
    link_id: str = LINK,
    kind: Kind = Kind.POLICY,
    entry_id: str = "approval:someone",
) -> evidence_pb2.LinkEntry:
    data = content if isinstance(content, bytes) else canonical_json(content)
    leaf = Leaf(kind, link_id, 0, b"", at, "1" * 32, "1" * 16, body_commitment(SALT, data))
    return evidence_pb2.LinkEntry(kind=kind, entry_id=entry_id, leaf=leaf.encode(), body=data, salt=SALT)


def decide(*entries: evidence_pb2.LinkEntry, now: datetime = NOW, quorum: Quorum = QUORUM) -> list[bytes] | Reason:
    try:
        return check_quorum(read_link(LINK, entries), quorum, "t-1", TERMS, now)
    except WalletError as refusal:
        return refusal.reason


def test_enough_distinct_approvers_are_named_by_their_leaves() -> None:
    entries = [entry(body("ann")), entry(body("bob"))]
    assert decide(*entries) == [leaf_hash(one.leaf) for one in entries]
    assert decide(entries[0]) is Reason.APPROVAL_REQUIRED
    assert decide() is Reason.APPROVAL_REQUIRED
    everybody = QUORUM._replace(approvers=())
    assert decide(entry(body("zoe")), entry(body("yan")), quorum=everybody) != Reason.APPROVAL_REQUIRED
    assert decide(entry(body("zoe")), entry(body("yan"))) is Reason.APPROVAL_REQUIRED


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (entry(body("bob", decision="reject")), Reason.APPROVAL_REJECTED),
        (entry(body("bob", terms_sha256=to_hex(bytes(32)))), Reason.APPROVAL_MISMATCH),
        (entry(body("bob", expires_at=format_time(NOW))), Reason.APPROVAL_EXPIRED),
        (entry(body("bob"), at=NOW - HOUR), Reason.APPROVAL_EXPIRED),
        # Who asked, who is not asked, who approved already.
        (entry(body("requester")), Reason.APPROVAL_REQUIRED),
        (entry(body("mallory")), Reason.APPROVAL_REQUIRED),
        (entry(body("ann"), entry_id="approval:again"), Reason.APPROVAL_REQUIRED),
        (entry(body("mallory", decision="reject")), Reason.APPROVAL_REQUIRED),
        # What is no approval of this transfer.
        (entry(body("bob", transfer_id="t-2")), Reason.APPROVAL_REQUIRED),
        (entry(body("bob", act="proposal")), Reason.APPROVAL_REQUIRED),
        (entry(body("bob", decision="perhaps")), Reason.APPROVAL_REQUIRED),
        (entry(body("bob", decision=True)), Reason.APPROVAL_REQUIRED),
        (entry(body("bob", terms_sha256="0x")), Reason.APPROVAL_REQUIRED),
        (entry(body("bob", terms_sha256=None)), Reason.APPROVAL_REQUIRED),
        (entry(body("bob", expires_at="never")), Reason.APPROVAL_REQUIRED),
        (entry(body("bob", expires_at=7)), Reason.APPROVAL_REQUIRED),
        (entry(body("bob", approver=7)), Reason.APPROVAL_REQUIRED),
        (entry(body("bob", approver=["bob"])), Reason.APPROVAL_REQUIRED),
        (entry(body("")), Reason.APPROVAL_REQUIRED),
        (entry({"act": "approval"}), Reason.APPROVAL_REQUIRED),
        # What stands elsewhere.
        (entry(body("bob"), link_id="t-2:approval"), Reason.APPROVAL_REQUIRED),
        (entry(body("bob"), kind=Kind.KEY), Reason.APPROVAL_REQUIRED),
        (entry(body("bob"), entry_id="proposal"), Reason.APPROVAL_REQUIRED),
    ],
)
def test_what_counts_for_nothing(second: evidence_pb2.LinkEntry, expected: Reason) -> None:
    assert decide(entry(body("ann")), second) is expected
    assert decide(second, entry(body("ann"))) is expected


def test_a_body_that_is_not_the_leafs_counts_for_nothing() -> None:
    forged = entry(body("mallory"))
    forged.body = canonical_json(body("bob"))
    erased = entry(body("bob"))
    erased.body = erased.salt = b""
    blank = entry(body("bob"))
    blank.leaf = b"{}"
    for second in (forged, erased, blank):
        assert decide(entry(body("ann")), second) is Reason.APPROVAL_REQUIRED


def test_a_clock_that_is_set_back_revives_nothing() -> None:
    old, new = entry(body("ann"), at=NOW - HOUR), entry(body("bob"), at=NOW)
    for clock in (NOW, NOW - HOUR, NOW - timedelta(days=1)):
        assert decide(old, new, now=clock) is Reason.APPROVAL_EXPIRED
    assert decide(entry(body("ann")), new, now=NOW + HOUR) is Reason.APPROVAL_EXPIRED


_members = (
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(codec="ascii"), max_size=9)
)


@given(
    st.sampled_from(["act", "approver", "decision", "expires_at", "terms_sha256", "transfer_id"]),
    _members | st.lists(_members, max_size=2) | st.dictionaries(st.sampled_from("abc"), _members, max_size=2),
)
def test_no_field_may_be_anything_else(field: str, value: Any) -> None:
    second = body("bob")
    if value not in (second[field], "reject", "bob", "cid"):
        assert isinstance(decide(entry(body("ann")), entry(second | {field: value})), Reason)
    del second[field]
    assert isinstance(decide(entry(body("ann")), entry(second)), Reason)


@given(st.binary(max_size=300))
def test_no_bytes_are_an_approval_by_accident(data: bytes) -> None:
    assert decide(entry(body("ann")), entry(data)) is Reason.APPROVAL_REQUIRED
