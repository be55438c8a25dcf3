"""Spans from entries: one for each span that an entry names, with what the log knows of it and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.core.canonical import format_time
from services.core.entries import Kind, Leaf
from services.core.errors import WalletError
from services.runtime import attributes as names
from services.tracestore.rebuilding import (
    Difference,
    EnteredStep,
    EssentialSpan,
    StoredSpan,
    differences,
    essential_spans,
)
from tools.goldenlink.rebuilding import steps_of_bundle

_BUNDLES = Path(__file__).resolve().parents[2] / "vectors" / "bundles"
_TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
_BEGIN = datetime(2026, 11, 24, 12, tzinfo=UTC)
_BEGIN_NS = 1_795_521_600_000_000_000
_SIGNER, _SENDER, _WATCHER = "00000000000000a1", "00000000000000b2", "00000000000000c3"


def _step(step: int, kind: Kind, span_id: str, ms: int, body: dict[str, Any] | None, link: str = "t-1") -> EnteredStep:
    at = _BEGIN + timedelta(milliseconds=ms)
    prev = bytes(32) if step else b""
    return EnteredStep(100 + step, Leaf(kind, link, step, prev, at, _TRACE_ID, span_id, bytes(32)), body)


def _with_spans(steps: list[EnteredStep], spans: list[str]) -> list[EnteredStep]:
    """The same entries, written by these spans as our services write them; the vectors name one for each."""
    by_kind = {
        Kind.INTENT: spans[0],
        Kind.SIGNATURE: spans[0],
        Kind.REQUEST: spans[1],
        Kind.RESPONSE: spans[1],
        Kind.INCLUSION: spans[2],
    }
    made = []
    for step in steps:
        leaf = step.leaf
        named = Leaf(
            leaf.kind, leaf.link_id, leaf.step, leaf.prev, leaf.at, leaf.trace_id, by_kind[leaf.kind], leaf.body
        )
        made.append(EnteredStep(step.index, named, step.body))
    return made


@pytest.fixture
def plain() -> list[EnteredStep]:
    return _with_spans(steps_of_bundle(_BUNDLES / "plain" / "bundle.json"), [_SIGNER, _SENDER, _WATCHER])


def _stored(span: EssentialSpan, **changed: Any) -> StoredSpan:
    own = {key: value for key, value in span.attributes.items() if key != names.WALLET_REBUILT}
    return StoredSpan(span.service, span.name, {**own, "wallet.account.id": "5c1a", **changed})


def test_a_link_becomes_the_spans_that_wrote_it(plain: list[EnteredStep]) -> None:
    signature, submission, inclusion = essential_spans(plain)
    assert [(one.service, one.name, one.span_id) for one in (signature, submission, inclusion)] == [
        ("signer", "signer.signature", _SIGNER),
        ("broadcaster", "broadcaster.submission", _SENDER),
        ("broadcaster", "broadcaster.inclusion", _WATCHER),
    ]
    signed = next(step for step in plain if step.leaf.kind is Kind.SIGNATURE)
    intent = next(step for step in plain if step.leaf.kind is Kind.INTENT)
    assert signed.body is not None
    assert intent.body is not None
    assert signature.attributes == {
        names.WALLET_REBUILT: True,
        names.WALLET_LINK_ID: signed.leaf.link_id,
        names.WALLET_SIGNATURE_ALGORITHM: "ecdsa_secp256k1",
        names.WALLET_CHAIN_ID: "eip155:31337",
        names.WALLET_TX_SIGN_HASH: intent.body["tx_sign_hash"],
        names.WALLET_TX_TYPE: 2,
        names.WALLET_SIGNATURE_STATUS: "success",
        names.WALLET_SIGNATURE_DURATION_MS: signed.body["duration_ms"],
        names.WALLET_TX_HASH: signed.body["tx_hash"],
        names.WALLET_EVIDENCE_INDEX: signed.index,
    }
    assert submission.attributes[names.WALLET_TX_HASH] == signed.body["tx_hash"]
    assert inclusion.attributes[names.WALLET_TX_HASH] == signed.body["tx_hash"]
    assert inclusion.attributes[names.WALLET_STATE] == "FINALIZED"
    assert all(one.start_ns <= one.end_ns and one.error is None for one in (signature, submission, inclusion))
    assert signature.end_ns <= submission.end_ns <= inclusion.start_ns


def test_a_revocation_names_the_transaction_that_it_takes_back() -> None:
    spans = essential_spans(steps_of_bundle(_BUNDLES / "reorg" / "bundle.json"))
    (revoked,) = [span for span in spans if span.name == "broadcaster.revocation"]
    included = [span for span in spans if span.name == "broadcaster.inclusion"]
    assert revoked.attributes[names.WALLET_TX_HASH] == included[0].attributes[names.WALLET_TX_HASH]


def test_a_bumped_link_has_a_transaction_for_each_submission() -> None:
    spans = essential_spans(steps_of_bundle(_BUNDLES / "bump" / "bundle.json"))
    signed = {
        span.attributes[names.WALLET_TX_HASH]
        for span in spans
        if span.name == "signer.signature" and names.WALLET_TX_HASH in span.attributes
    }
    # The vector's responses have spans of their own, and name no transaction.
    sent = {span.attributes.get(names.WALLET_TX_HASH) for span in spans if span.name == "broadcaster.submission"}
    assert len(signed) == 2
    assert sent - {None} == signed


def test_a_denial_is_no_signature() -> None:
    (span,) = essential_spans(steps_of_bundle(_BUNDLES / "denied" / "bundle.json"))
    assert (span.name, span.error, span.has_own_name) == ("signer.denial", "POLICY_DENIED", False)
    assert names.WALLET_SIGNATURE_STATUS not in span.attributes


def test_a_failed_signature_is_an_error_until_a_later_one_of_the_same_span_succeeds(plain: list[EnteredStep]) -> None:
    intent, signed = plain[0], plain[1]
    assert signed.body is not None
    failure = {**signed.body, "status": "failed", "error": "TOKEN_UNAVAILABLE", "token": None, "duration_ms": None}
    failed = EnteredStep(101, signed.leaf, {**failure, "raw_tx": None, "tx_hash": None})
    (span,) = essential_spans([intent, failed])
    assert span.error == ""
    assert span.attributes[names.WALLET_SIGNATURE_STATUS] == "failed"
    assert names.WALLET_TX_HASH not in span.attributes
    again = Leaf(Kind.SIGNATURE, signed.leaf.link_id, 2, bytes(32), signed.leaf.at, signed.leaf.trace_id, _SIGNER, b"")
    (span,) = essential_spans([intent, failed, EnteredStep(102, again, signed.body)])
    assert span.error is None
    assert span.attributes[names.WALLET_EVIDENCE_INDEX] == 102


def test_a_signature_that_another_process_made_after_a_crash_is_a_span_of_its_own(plain: list[EnteredStep]) -> None:
    leaf = plain[1].leaf
    other = Leaf(leaf.kind, leaf.link_id, leaf.step, leaf.prev, leaf.at, leaf.trace_id, "00000000000000d4", leaf.body)
    spans = essential_spans([plain[0], EnteredStep(plain[1].index, other, plain[1].body)])
    by_id = {span.span_id: span.attributes for span in spans}
    assert by_id.keys() == {_SIGNER, "00000000000000d4"}
    assert all(names.WALLET_TX_SIGN_HASH in found for found in by_id.values())
    assert [names.WALLET_SIGNATURE_STATUS in by_id[one] for one in (_SIGNER, "00000000000000d4")] == [False, True]


def test_an_erased_link_still_tells_who_did_something_and_when(plain: list[EnteredStep]) -> None:
    spans = essential_spans([EnteredStep(step.index, step.leaf, None) for step in plain])
    assert [span.name for span in spans] == ["signer.signature", "broadcaster.submission", "broadcaster.inclusion"]
    assert all(span.attributes == {names.WALLET_REBUILT: True} for span in spans)


def test_a_spans_time_is_that_of_its_work() -> None:
    request = {"node": "a", "attempt": 1, "body": "0x" + b'{"params":["0x01"]}'.hex(), "batch": None}
    received = format_time(_BEGIN + timedelta(milliseconds=80))
    (span,) = essential_spans(
        [
            _step(0, Kind.REQUEST, _SENDER, 10, {**request, "sent_at": format_time(_BEGIN)}),
            _step(1, Kind.RESPONSE, _SENDER, 70, {"received_at": received}),
        ]
    )
    assert (span.start_ns, span.end_ns) == (_BEGIN_NS, _BEGIN_NS + 80_000_000)


def test_an_approval_and_administrative_entries_are_known_by_their_service() -> None:
    approval = _step(0, Kind.POLICY, _SIGNER, 0, {"act": "approval"})
    (span,) = essential_spans([approval])
    assert (span.service, span.name, span.has_own_name) == ("gateway", "gateway.approval", True)
    (span,) = essential_spans([_step(0, Kind.KEY, _SIGNER, 0, {})])
    assert (span.service, span.name, span.has_own_name) == ("keys", "keys.key", False)


def test_entries_of_two_links_are_refused() -> None:
    with pytest.raises(WalletError):
        essential_spans([_step(0, Kind.KEY, _SIGNER, 0, {}), _step(0, Kind.KEY, _SENDER, 0, {}, "t-2")])


def test_what_is_stored_as_the_log_says_differs_in_nothing(plain: list[EnteredStep]) -> None:
    spans = essential_spans(plain)
    assert differences(spans, {span.span_id: _stored(span) for span in spans}) == []


def test_each_difference_is_named(plain: list[EnteredStep]) -> None:
    signature, submission, inclusion = essential_spans(plain)
    tx_hash = signature.attributes[names.WALLET_TX_HASH]
    stored = {
        _SIGNER: _stored(signature, **{names.WALLET_TX_HASH: "0xbad"}),
        _WATCHER: StoredSpan("signer", "x", {}),
    }
    found = differences([signature, submission, inclusion], stored)
    assert found[:4] == [
        Difference(_SIGNER, names.WALLET_TX_HASH, tx_hash, "0xbad"),
        Difference(_SENDER, "span", "broadcaster.submission", None),
        Difference(_WATCHER, "service", "broadcaster", "signer"),
        Difference(_WATCHER, "name", "broadcaster.inclusion", "x"),
    ]
    assert all(one.stored is None for one in found[4:])


def test_a_denials_span_is_held_to_its_service_alone() -> None:
    spans = essential_spans(steps_of_bundle(_BUNDLES / "denied" / "bundle.json"))
    stored = {spans[0].span_id: StoredSpan("signer", "wallet.v1.Signer/CheckPolicy", {})}
    assert differences(spans, stored) == []
