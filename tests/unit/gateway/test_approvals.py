"""What counts as approved, and how links of the gateway's own are named."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.core.entries import check_link_id
from services.gateway.approval_log import policy_link, transfer_link
from services.gateway.approval_rows import Approval
from services.gateway.approvals import Standing, terms_hash
from services.gateway.identifier import IdentifierSource
from services.gateway.superseding_rows import cancel_link_id, gap_link_id, superseding
from services.gateway.transfer import State, Transfer

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TRANSFER = Transfer(
    transfer_id="t-1",
    state=State.ACCEPTED,
    account_id="acc",
    chain_id="eip155:1",
    from_address=b"\x01" * 20,
    to_address=b"\x02" * 20,
    value_wei="7",
    data=b"\x03",
    fees=b"\x04",
    key_id="key",
    key_version=2,
    traceparent=f"00-{'1' * 32}-{'2' * 16}-01",
    personal=b"sealed",
    created_at=NOW,
    updated_at=NOW,
    nonce=9,
)


def given(approver: str, decision: str = "approve", age_s: int = 1) -> Approval:
    at = NOW - timedelta(seconds=age_s)
    return Approval("t-1:approval", approver, decision, at, at + timedelta(hours=1), "", b"{}", 1)


def rule(count: int = 2, *approvers: str, valid_s: int = 60) -> dict[str, Any]:
    return {"count": count, "valid_s": valid_s, "approvers": list(approvers)}


@pytest.mark.parametrize(
    ("approvals", "wanted", "enough"),
    [
        ([], rule(1), False),
        ([given("alice")], rule(1), True),
        ([given("alice")], rule(2), False),
        ([given("alice"), given("bob")], rule(2), True),
        # One approver is one, the requester is none, and neither is whom the policy does not name.
        ([given("alice"), given("alice")], rule(2), False),
        ([given("alice"), given("olga")], rule(2), False),
        ([given("alice"), given("bob")], rule(2, "bob", "carol"), False),
        ([given("carol"), given("bob")], rule(2, "bob", "carol"), True),
        ([given("alice", age_s=60)], rule(1), False),
        ([given("alice", age_s=59)], rule(1), True),
        ([given("alice", "reject")], rule(1), False),
    ],
)
def test_enough_distinct_valid_approvals(approvals: list[Approval], wanted: dict[str, Any], enough: bool) -> None:
    assert Standing(NOW, approvals).satisfies(wanted, "olga") is enough


def test_a_rejection_names_who_rejected() -> None:
    assert Standing(NOW, [given("alice"), given("bob", "reject")]).rejected_by == "bob"
    assert Standing(NOW, [given("alice")]).rejected_by is None


@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": "eip155:2"},
        {"from_address": b"\x05" * 20},
        {"to_address": b""},
        {"value_wei": "8"},
        {"data": b""},
    ],
)
def test_approvals_are_bound_to_every_term(change: dict[str, Any]) -> None:
    assert terms_hash(replace(TRANSFER, **change)) != terms_hash(TRANSFER)


def test_nonce_and_fees_are_no_terms() -> None:
    assert terms_hash(replace(TRANSFER, nonce=10, fees=b"")) == terms_hash(TRANSFER)


def test_links_of_a_transfer_fit_the_log() -> None:
    name = IdentifierSource().next("t")
    account = ("eip155:11155111", b"\xff" * 20)
    for link_id in (
        cancel_link_id(name),
        cancel_link_id(name, 15),
        transfer_link(name),
        policy_link(bytes(32)),
        gap_link_id(account, 10**7, 15),
        gap_link_id(("eip155:" + "9" * 20, account[1]), 2**63, 15),
    ):
        check_link_id(link_id, "link_id")
    assert gap_link_id(account, 5) == f"gap:11155111:{'ff' * 20}:5"
    assert gap_link_id(account, 5, 1) == f"gap:11155111:{'ff' * 20}:5.1"


def test_a_superseding_transfer_moves_nothing_from_the_sender_to_itself() -> None:
    link = superseding(TRANSFER, "t-1:cancel", "t-1", None, TRANSFER.created_at)
    assert (link.to_address, link.value_wei, link.data, link.fees) == (TRANSFER.from_address, "0", b"", b"")
    assert (link.from_address, link.nonce, link.key_id, link.key_version) == (TRANSFER.from_address, 9, "key", 2)
    assert (link.state, link.traceparent, link.supersedes) == (State.ACCEPTED, TRANSFER.traceparent, "t-1")
