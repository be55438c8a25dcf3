"""Signing over a real database and a real child: what a caller, an auditor and an attacker would notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from protos.wallet.v1 import common_pb2, signer_pb2
from services.core.addresses import address_of_public_key
from services.core.canonical import from_hex
from services.core.digests import CURVE_ORDER, recover_public_key
from services.core.entries import Kind, check_body
from services.core.errors import Reason, WalletError
from services.core.grammar import LinkHead, State, advance
from services.core.transactions import decode_raw, decode_unsigned, signing_digest, tx_hash
from services.runtime.db import Database
from tests.fakes.keys import FakeKeys
from tests.integration.conftest import ServiceDatabase
from tests.integration.signer_harness import BURN, Harness, Log, signer_replica


@pytest.fixture
async def signer(service_database: Callable[[str], ServiceDatabase], tmp_path: Path) -> AsyncIterator[Harness]:
    keys = FakeKeys()
    async with signer_replica(service_database("signer"), tmp_path, Log(), keys, keys.add("k1")) as harness:
        yield harness


async def _refused(call: Any) -> Reason:
    with pytest.raises(WalletError) as refusal:
        await call
    return refusal.value.reason


def _digest(request: signer_pb2.SignTransactionRequest) -> str:
    return signing_digest(request.unsigned_tx).hex()


async def test_a_transfer_is_signed_by_its_sender_with_intent_and_signature_on_record(signer: Harness) -> None:
    request = signer.request("t-1", 0)
    signed = await signer.sign(request)

    tx, signature = decode_raw(signed.raw_tx)
    assert tx == decode_unsigned(request.unsigned_tx)
    assert signed.tx_hash == tx_hash(signed.raw_tx)
    public_key = recover_public_key(signing_digest(request.unsigned_tx), signature)
    assert address_of_public_key(public_key) == signer.sender

    intent, entry = signer.log.link("t-1")
    assert (intent.request.entry_id, entry.request.entry_id) == (
        f"intent:{_digest(request)}",
        f"signature:{_digest(request)}",
    )
    assert (intent.reply.index, entry.reply.index) == (signed.intent_index, signed.signature_index)
    check_body(Kind.INTENT, intent.body)
    check_body(Kind.SIGNATURE, entry.body)
    assert intent.body["policy"]["decision"] == "allow"
    assert intent.body["actor"] == "alice"
    assert intent.body["client_fingerprint"] is None
    assert entry.body["raw_tx"] == "0x" + signed.raw_tx.hex()
    assert {one.request.trace_id for one in (intent, entry)} == {request.traceparent[3:35]}
    # One append for the intent, one for the signature, and no more.
    assert signer.log.calls == 2
    assert _state(signer.log, "t-1") is State.SIGNED


def _state(log: Log, link_id: str) -> State:
    """Where the link stands by the log's own rules, which refuse what they do not allow."""
    head: LinkHead | None = None
    for entry in log.link(link_id):
        at = datetime.now(UTC)
        check_body(Kind(entry.request.kind), entry.body)
        head = advance(head, Kind(entry.request.kind), entry.body, at, trace_id=entry.request.trace_id)
        head = head.with_leaf_hash(entry.reply.leaf_hash)
    assert head is not None
    return head.state


async def test_who_asked_is_in_the_log_and_no_more_in_the_database(signer: Harness) -> None:
    await signer.sign(signer.request("t-1", 0))
    with pytest.raises(WalletError):
        await signer.sign(signer.request("t-2", 1, to=BURN))
    for table in ("register", "denials", "failed_signatures"):
        rows = signer.server.execute(f"SELECT * FROM signer.{table}")
        assert "alice" not in rows
        assert b"alice".hex() not in rows


async def test_every_signature_is_low_s(signer: Harness) -> None:
    results = await signer.sign_all(*(signer.request(f"t-{nonce}", nonce) for nonce in range(64)))
    for result in results:
        assert decode_raw(result.signed.raw_tx)[1].s <= CURVE_ORDER // 2


async def test_a_repeated_call_answers_the_stored_signature_without_the_token(signer: Harness) -> None:
    request = signer.request("t-1", 0)
    first = await signer.sign(request)
    assert await signer.sign(request) == first
    assert (await signer.sign_all(request))[0].signed == first
    assert signer.asked() == [_digest(request)]
    assert signer.log.kinds("t-1") == ["intent", "signature"]


async def test_a_policy_without_velocity_and_approvals_costs_two_statements_and_two_appends(
    signer: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    rows, begin = Database.rows, Database.begin

    async def counted_rows(self: Database, statement: str, *arguments: object) -> Any:
        # Of a task of its own, once a second.
        if "SELECT max(version)" not in statement or "INSERT" in statement:
            statements.append(statement)
        return await rows(self, statement, *arguments)

    def counted_begin(self: Database) -> Any:
        statements.append("BEGIN")
        return begin(self)

    monkeypatch.setattr(Database, "rows", counted_rows)
    monkeypatch.setattr(Database, "begin", counted_begin)
    signer.log.GetLink = None  # type: ignore[method-assign, assignment]
    for results in (await signer.sign_all(signer.request("t-0", 0)), await signer.sign_all(*batch(signer))):
        assert all(one.HasField("signed") for one in results)
    assert [statement.split()[0] for statement in statements] == ["INSERT", "UPDATE"] * 2
    assert signer.log.calls == 4


def batch(signer: Harness) -> list[signer_pb2.SignTransactionRequest]:
    return [signer.request(f"t-{nonce}", nonce) for nonce in range(1, 30)]


async def test_a_transfer_is_not_signed_with_another_transaction(signer: Harness) -> None:
    await signer.sign(signer.request("t-1", 0))
    assert await _refused(signer.sign(signer.request("t-1", 0, value_wei=2))) is Reason.ALREADY_EXISTS
    assert await _refused(signer.sign(signer.request("t-1", 1))) is Reason.ALREADY_EXISTS


async def test_a_nonce_is_not_signed_for_two_links(signer: Harness) -> None:
    await signer.sign(signer.request("t-1", 7))
    assert await _refused(signer.sign(signer.request("t-2", 7, value_wei=2))) is Reason.NONCE_REGISTERED
    assert signer.log.link("t-2") == []


async def test_two_concurrent_calls_for_one_nonce_sign_once(signer: Harness) -> None:
    for nonce in range(5):
        calls = (signer.sign(signer.request(f"{name}-{nonce}", nonce)) for name in ("a", "b", "c"))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refusals = [one.reason for one in outcomes if isinstance(one, WalletError)]
        assert refusals == [Reason.NONCE_REGISTERED] * 2
    assert len(signer.asked()) == 5


async def test_concurrent_calls_of_one_transfer_agree(signer: Harness) -> None:
    request = signer.request("t-1", 0)
    answers = await asyncio.gather(*(signer.sign(request) for _ in range(4)))
    assert {answer.raw_tx for answer in answers} == {answers[0].raw_tx}
    assert signer.log.kinds("t-1") == ["intent", "signature"]


async def test_batches_that_overlap_in_another_order_agree(signer: Harness) -> None:
    requests = [signer.request(f"t-{nonce}", nonce) for nonce in range(50)]
    one, other = await asyncio.gather(signer.sign_all(*requests), signer.sign_all(*reversed(requests)))
    assert [result.signed.raw_tx for result in one] == [result.signed.raw_tx for result in reversed(other)]
    assert all(result.signed.raw_tx for result in one)


async def test_a_caller_that_gives_up_leaves_a_link_that_goes_on(signer: Harness) -> None:
    request = signer.request("t-1", 0)
    arrived = asyncio.Event()

    async def wait(number: int) -> None:
        if number == 1:
            arrived.set()
            await asyncio.Event().wait()

    signer.log.before_append = wait
    call = asyncio.create_task(signer.sign(request))
    await arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await signer.sign(request)
    assert signer.log.kinds("t-1") == ["intent", "signature"]


# Crash between any two steps: the call fails there, and the next one goes on.


@pytest.mark.parametrize("when", ["fail_before", "fail_after"])
async def test_no_intent_no_signature(signer: Harness, when: str) -> None:
    request = signer.request("t-1", 0)
    getattr(signer.log, when).add(1)
    assert await _refused(signer.sign(request)) is Reason.EVIDENCE_UNAVAILABLE
    assert signer.asked() == []
    await signer.sign(request)
    assert signer.log.kinds("t-1") == ["intent", "signature"]


async def test_a_log_that_refuses_entries_keeps_the_token_unasked(signer: Harness) -> None:
    signer.log.available = False
    assert await _refused(signer.sign_all(signer.request("t-1", 0))) is Reason.EVIDENCE_UNAVAILABLE
    assert signer.asked() == []


@pytest.mark.parametrize("when", ["fail_before", "fail_after"])
async def test_a_signature_that_is_not_on_record_is_not_given_away_and_not_made_twice(
    signer: Harness, when: str
) -> None:
    request = signer.request("t-1", 0)
    getattr(signer.log, when).add(2)
    assert await _refused(signer.sign(request)) is Reason.EVIDENCE_UNAVAILABLE
    signed = await signer.sign(request)
    assert signer.asked() == [_digest(request)]
    assert signer.log.link("t-1")[1].body["raw_tx"] == "0x" + signed.raw_tx.hex()


async def test_a_crash_after_the_intent_keeps_its_body(signer: Harness) -> None:
    request = signer.request("t-1", 0)
    signer.log.fail_after.add(1)
    await _refused(signer.sign(request))
    # The same transfer asked for again at another time and by another: what was entered first stands.
    request.requester.actor = "mallory"
    request.requester.requested_at.seconds += 1
    await signer.sign(request)
    assert signer.log.link("t-1")[0].body["actor"] == "alice"


async def test_a_signature_that_the_log_holds_wins_over_a_lost_database(signer: Harness) -> None:
    request = signer.request("t-1", 0)
    first = await signer.sign(request)
    # As a restored backup would: the triggers keep everybody else from it.
    signer.server.execute("SET session_replication_role = replica; DELETE FROM signer.register")
    request.requester.actor = "mallory"
    again = await signer.sign(request)
    assert again == first
    assert signer.log.link("t-1")[0].body["actor"] == "alice"


async def test_the_database_gone_refuses_and_nothing_is_half_done(signer: Harness) -> None:
    request = signer.request("t-1", 0)

    name = signer.server.name

    async def cut(number: int) -> None:
        # After the intent, before the signature is stored.
        if number == 1:
            signer.server.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT 0')
            signer.server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'signer'")

    signer.log.before_append = cut
    try:
        reason = await _refused(signer.sign(request))
    finally:
        signer.server.execute(f'ALTER DATABASE "{name}" CONNECTION LIMIT -1')
    assert reason is Reason.DATABASE_UNAVAILABLE
    assert signer.log.kinds("t-1") == ["intent"]
    await signer.sign(request)
    assert signer.log.kinds("t-1") == ["intent", "signature"]


# Voiding


async def test_a_voided_link_is_never_signed(signer: Harness) -> None:
    await signer.void("t-1")
    await signer.void("t-1")
    assert await _refused(signer.sign(signer.request("t-1", 0))) is Reason.LINK_VOIDED
    assert signer.asked() == []
    # Its nonce is free for another.
    await signer.sign(signer.request("t-2", 0))


async def test_a_link_that_is_registered_and_then_voided_frees_its_nonce(signer: Harness) -> None:
    request = signer.request("t-1", 0)
    signer.log.fail_before.add(1)
    await _refused(signer.sign(request))
    await signer.void("t-1")
    assert await _refused(signer.sign(request)) is Reason.LINK_VOIDED
    await signer.sign(signer.request("t-2", 0))


async def test_a_signed_link_is_not_voided(signer: Harness) -> None:
    await signer.sign(signer.request("t-1", 0))
    assert await _refused(signer.void("t-1")) is Reason.ALREADY_SIGNED


async def test_a_void_that_overtakes_a_running_call_discards_its_signature(signer: Harness) -> None:
    request = signer.request("t-1", 0)

    async def void(number: int) -> None:
        if number == 1:
            await signer.void("t-1")

    signer.log.before_append = void
    assert await _refused(signer.sign(request)) is Reason.LINK_VOIDED
    assert signer.asked() == [_digest(request)]
    assert signer.log.kinds("t-1") == ["intent"]


async def test_void_and_sign_at_once_never_both_succeed(signer: Harness) -> None:
    for nonce in range(20):
        link = f"t-{nonce}"
        signed, voided = await asyncio.gather(
            signer.sign(signer.request(link, nonce)), signer.void(link), return_exceptions=True
        )
        assert isinstance(signed, WalletError) != isinstance(voided, WalletError)


# Denials


async def test_a_denied_transfer_is_one_denied_intent_and_no_signature(signer: Harness) -> None:
    request = signer.request("t-1", 0, to=BURN)
    assert await _refused(signer.sign(request)) is Reason.POLICY_DENIED
    assert await _refused(signer.sign(request)) is Reason.POLICY_DENIED
    (entry,) = signer.log.link("t-1")
    check_body(Kind.INTENT, entry.body)
    assert entry.body["policy"]["decision"] == "deny"
    assert entry.body["policy"]["rules"] == ["destinations.deny: 0x" + "00" * 20]
    assert _state(signer.log, "t-1") is State.FAILED
    assert signer.asked() == []
    # The nonce was never held.
    await signer.sign(signer.request("t-2", 0))
    # A denied link stays denied, whatever it asks for next.
    assert await _refused(signer.sign(signer.request("t-1", 1))) is Reason.POLICY_DENIED


async def test_check_policy_records_a_refusal_only_with_a_draft(signer: Harness) -> None:
    draft = signer.request("t-1", 4, to=BURN)
    tx = decode_unsigned(draft.unsigned_tx)
    check = signer_pb2.PolicyCheck(
        transfer_id="t-1",
        terms=common_pb2.Terms(
            chain_id="eip155:31337", from_address=signer.sender, to_address=BURN, value_wei=str(tx.value_wei)
        ),
        key=draft.key,
        requester=draft.requester,
        traceparent=draft.traceparent,
    )
    allowed = signer_pb2.PolicyCheck()
    allowed.CopyFrom(check)
    allowed.transfer_id = "t-2"
    allowed.terms.to_address = b"\x11" * 20

    async def ask(*checks: signer_pb2.PolicyCheck) -> Any:
        return (await signer.api.CheckPolicy(signer_pb2.CheckPolicyRequest(checks=checks), None)).decisions

    denied, fine = await ask(check, allowed)
    assert (denied.allowed, fine.allowed) == (False, True)
    assert not denied.HasField("evidence_index")
    assert signer.log.link("t-1") == []

    check.draft_unsigned_tx = draft.unsigned_tx
    (recorded,) = await ask(check)
    (again,) = await ask(check)
    (entry,) = signer.log.link("t-1")
    assert recorded.evidence_index == again.evidence_index == entry.reply.index
    assert entry.body["unsigned_tx"] == "0x" + draft.unsigned_tx.hex()

    check.terms.value_wei = "2"
    assert await _refused(ask(check)) is Reason.INVALID_REQUEST


async def test_neighbours_of_a_denied_and_a_failing_item_are_signed(signer: Harness) -> None:
    requests = [signer.request(f"t-{nonce}", nonce) for nonce in range(6)]
    requests[1] = signer.request("t-1", 1, to=BURN)
    requests[2].key.key_id = "unknown"
    requests[3].from_address = b"\x22" * 20
    signer.fault("die", requests[4])
    results = await signer.sign_all(*requests)
    assert [one.error.reason or "signed" for one in results] == [
        "signed",
        Reason.POLICY_DENIED.name,
        Reason.KEY_NOT_FOUND.name,
        Reason.KEY_NOT_FOUND.name,
        Reason.TOKEN_UNAVAILABLE.name,
        "signed",
    ]
    assert signer.log.kinds("t-2") == signer.log.kinds("t-3") == []


async def test_a_malformed_item_refuses_the_batch_and_names_it(signer: Harness) -> None:
    for change in ("unsigned_tx", "traceparent", "from_address", "transfer_id"):
        good, bad = signer.request("t-1", 0), signer.request("t-2", 1)
        setattr(bad, change, "?" if change in ("traceparent", "transfer_id") else b"\x03\x04")
        with pytest.raises(WalletError) as refusal:
            await signer.sign_all(good, bad)
        assert (refusal.value.reason, refusal.value.details["index"]) == (Reason.INVALID_REQUEST, 1)
        assert refusal.value.details["field"] in (change, "unsigned_tx")
    assert signer.log.calls == 0


# The token


async def test_a_child_that_dies_mid_batch_costs_nothing(signer: Harness) -> None:
    requests = [signer.request(f"t-{nonce}", nonce) for nonce in range(60)]
    signer.fault("die-once", requests[40])
    results = await signer.sign_all(*requests)
    assert all(one.HasField("signed") for one in results)
    assert all(signer.log.kinds(f"t-{nonce}") == ["intent", "signature"] for nonce in range(60))


async def test_a_token_call_that_hangs_once_is_tried_again(signer: Harness) -> None:
    request = signer.request("t-1", 0)
    signer.fault("hang-once", request)
    await signer.sign(request)
    assert signer.asked() == [_digest(request)] * 2


async def test_a_token_call_that_hangs_for_ever_is_a_timeout_on_record(signer: Harness) -> None:
    requests = [signer.request(f"t-{nonce}", nonce) for nonce in range(4)]
    signer.fault("hang", requests[1])
    results = await signer.sign_all(*requests)
    assert [one.error.reason for one in results] == ["", Reason.TOKEN_TIMEOUT.name, "", ""]
    _, failed = signer.log.link("t-1")
    check_body(Kind.SIGNATURE, failed.body)
    assert failed.body["status"] == "timeout"
    # Not for ever after all: the link is signed by a later call.
    (signer.faults / "hang").unlink()
    await signer.sign(requests[1])
    assert [one.body.get("status") for one in signer.log.link("t-1")] == [None, "timeout", "success"]
    assert _state(signer.log, "t-1") is State.SIGNED


async def test_batches_wait_their_turn_when_the_one_before_kills_the_child(signer: Harness) -> None:
    first = [signer.request(f"a-{nonce}", nonce) for nonce in range(30)]
    second = [signer.request(f"b-{nonce}", 100 + nonce) for nonce in range(30)]
    signer.fault("die-once", first[10])
    for results in await asyncio.gather(signer.sign_all(*first), signer.sign_all(*second)):
        assert all(one.HasField("signed") for one in results)


async def test_a_failed_signature_that_a_crash_kept_from_the_log_is_appended_later(signer: Harness) -> None:
    request = signer.request("t-1", 0)
    signer.fault("die", request)
    signer.log.fail_before.add(2)
    assert await _refused(signer.sign(request)) is Reason.EVIDENCE_UNAVAILABLE
    (signer.faults / "die").unlink()
    await signer.sign(request)
    assert [one.body.get("status") for one in signer.log.link("t-1")] == [None, "failed", "success"]


async def test_keys_that_lost_the_transport_key_are_told_again(signer: Harness) -> None:
    signer.keys.forget_transport_keys()
    await signer.sign(signer.request("t-1", 0))


# Policy and status


async def test_the_policy_is_on_record_before_it_decides(signer: Harness) -> None:
    policy = await signer.api.GetPolicy(signer_pb2.GetPolicyRequest(), None)
    (entry,) = signer.log.link(f"policy:{policy.version}:{policy.sha256.hex()[:16]}")
    assert entry.request.kind == "policy"
    assert from_hex(entry.body["sha256"]) == policy.sha256
    assert entry.body["document"].encode() == policy.document


async def test_status_names_what_is_missing(signer: Harness) -> None:
    signer.log.available = False
    status = await signer.api.GetSignerStatus(signer_pb2.GetSignerStatusRequest(), None)
    assert (status.token_ready, status.evidence_ready, status.database_ready) == (True, False, True)
    assert list(status.missing) == ["evidence: switched off"]
    assert (status.token_label, status.workers) == ("software", 1)
