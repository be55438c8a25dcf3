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
from services.core.signed_requests import SignedRequest
from services.signer.approvals import Quorum, check_quorum, read_link
from tests.fakes.approver import SigningApprover

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


# Approvers with a key

BOB, EVE = SigningApprover(), SigningApprover()
KEYED = QUORUM._replace(keys={"bob": BOB.fingerprint})
GOOD = BOB.approval("t-1", to_hex(TERMS))


def created(ago: timedelta, **parameters: int) -> SignedRequest:
    content = GOOD.content
    times = {"created": int((NOW - ago).timestamp()), **parameters}
    return BOB.request("/v1/transfers/t-1:approve", content, parameters=times)


def signed(request: SignedRequest | None, **changes: Any) -> evidence_pb2.LinkEntry:
    own = {} if request is None else {"client_signature": request.document()}
    return entry(body("bob", **own) | changes)


def test_with_a_key_only_what_it_has_signed_counts() -> None:
    ann = entry(body("ann"))
    assert decide(ann, signed(GOOD), quorum=KEYED) == [leaf_hash(ann.leaf), leaf_hash(signed(GOOD).leaf)]
    # Signed by somebody without a key in the policy it counts as ever.
    assert decide(entry(body("ann", client_signature=EVE.request("/x").document())), signed(GOOD), quorum=KEYED)


@pytest.mark.parametrize(
    "invented",
    [
        signed(None),
        signed(EVE.approval("t-1", to_hex(TERMS))),
        signed(BOB.approval("t-2", to_hex(TERMS))),
        signed(BOB.approval("t-1", to_hex(bytes(32)))),
        signed(BOB.request("/v1/transfers/t-1:reject", GOOD.content)),
        signed(BOB.request("/v1/transfers/t-1:approve")),
        signed(BOB.request("/v1/transfers:batch", GOOD.content)),
        signed(BOB.policy_approval(to_hex(TERMS))),
        signed(GOOD._replace(signature=bytes(64))),
        signed(None, client_signature="signed, believe me"),
        signed(None, client_signature=GOOD.document() | {"key_fingerprint": EVE.fingerprint}),
        signed(
            None, client_signature=GOOD.document() | {"public_key": EVE.approval("t-1", "").document()["public_key"]}
        ),
    ],
)
def test_an_approval_that_gateway_invented_is_none(invented: evidence_pb2.LinkEntry) -> None:
    with pytest.raises(WalletError) as refused:
        check_quorum(read_link(LINK, [entry(body("ann")), invented]), KEYED, "t-1", TERMS, NOW)
    assert refused.value.reason is Reason.APPROVAL_REQUIRED
    details = refused.value.details
    assert (details["needed"], details["given"], details["unproven"]) == (2, 1, 1)
    assert str(details["rule"]).startswith("the approver's signature ")


def test_an_approval_is_as_old_as_its_signature() -> None:
    ann = entry(body("ann"))
    assert decide(ann, signed(created(HOUR - timedelta(seconds=1))), quorum=KEYED) != Reason.APPROVAL_EXPIRED
    # Held back by gateway and entered now.
    assert decide(ann, signed(created(HOUR)), quorum=KEYED) is Reason.APPROVAL_EXPIRED
    over = created(timedelta(minutes=5), expires=int(NOW.timestamp()))
    assert decide(ann, signed(over), quorum=KEYED) is Reason.APPROVAL_EXPIRED
    # A signature of the future does not make it last.
    late = signed(created(-timedelta(days=1)))
    assert decide(ann, late, now=NOW + HOUR, quorum=KEYED) is Reason.APPROVAL_EXPIRED


def test_a_rejection_is_one_without_a_signature_too() -> None:
    for rejection in (signed(None, decision="reject"), signed(GOOD, decision="reject")):
        assert decide(entry(body("ann")), entry(body("cid")), rejection, quorum=KEYED) is Reason.APPROVAL_REJECTED


def test_a_policy_is_approved_by_its_own_hash() -> None:
    digest = b"\x09" * 32
    link_id = f"policy:{digest.hex()[:32]}:approval"
    quorum = Quorum(1, None, (), frozenset({"paul"}), {"bob": BOB.fingerprint})

    def outcome(request: SignedRequest) -> list[bytes] | Reason:
        content = body("bob", policy_sha256=to_hex(digest), proposer="paul", client_signature=request.document())
        del content["transfer_id"], content["terms_sha256"]
        one = entry(content, link_id=link_id)
        try:
            return check_quorum(read_link(link_id, [one]), quorum, "", digest, NOW)
        except WalletError as refusal:
            return refusal.reason

    for name in (digest.hex(), to_hex(digest)):
        assert isinstance(outcome(BOB.policy_approval(name)), list)
    for wrong in (
        BOB.policy_approval(to_hex(bytes(32))),
        BOB.request(f"/v1/policies/{to_hex(digest)}:reject"),
        BOB.request("/v1/policies", b"{}"),
        BOB.approval("t-1", to_hex(digest)),
        EVE.policy_approval(to_hex(digest)),
    ):
        assert outcome(wrong) is Reason.APPROVAL_REQUIRED
