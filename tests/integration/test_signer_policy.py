"""Approvals that the log shows, and policies that two approvers put in force, on every replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from protos.wallet.v1 import common_pb2, evidence_pb2, signer_pb2
from services.core.canonical import canonical_json, format_time, to_hex
from services.core.entries import Kind, check_body
from services.core.errors import Reason, WalletError
from services.core.signed_requests import SignedRequest
from services.core.terms import terms_sha256
from services.core.transactions import decode_unsigned
from services.runtime.telemetry import new_traceparent
from services.signer.policy_store import PolicyRow, PolicyStore
from tests.fakes.approver import SigningApprover
from tests.fakes.keys import FakeKeys
from tests.integration.conftest import ServiceDatabase
from tests.integration.signer_harness import RECEIVER, Harness, Log, signer_replica

POLICY = b"""
version: 1
name: approved
rules:
  chains: {allow: ["eip155:31337"]}
  destinations: {allow: any}
  assets:
    eip155:31337/native:
      per_transfer: "1000"
      approvals: {above: "100", count: 2, valid_s: 3600, approvers: [ann, bob, cid, alice]}
"""
HOUR = timedelta(hours=1)


@pytest.fixture
def policy() -> bytes:
    return POLICY


async def refusal(call: Awaitable[object]) -> WalletError:
    with pytest.raises(WalletError) as refused:
        await call
    return refused.value


async def reason(call: Awaitable[object]) -> Reason:
    return (await refusal(call)).reason


async def enter(log: Log, link_id: str, entry_id: str, body: dict[str, Any]) -> bytes:
    reply = await log.AppendEntry(
        evidence_pb2.AppendEntryRequest(
            link_id=link_id,
            entry_id=entry_id,
            kind="policy",
            trace_id="1" * 32,
            span_id="1" * 16,
            body=canonical_json(body),
        ),
        None,
    )
    return bytes(reply.leaf_hash)


def approval(signer: Harness, request: signer_pb2.SignTransactionRequest, approver: str) -> dict[str, Any]:
    tx = decode_unsigned(request.unsigned_tx)
    return {
        "act": "approval",
        "transfer_id": request.transfer_id,
        "decision": "approve",
        "approver": approver,
        "terms_sha256": to_hex(terms_sha256(tx.chain_id, signer.sender, tx.to, tx.value_wei, tx.data)),
        "expires_at": format_time(datetime.now(UTC) + HOUR),
        "at": format_time(datetime.now(UTC)),
    }


async def approve(signer: Harness, request: signer_pb2.SignTransactionRequest, approver: str, **changes: Any) -> bytes:
    link_id = f"{request.transfer_id}:approval"
    return await enter(signer.log, link_id, f"approval:{approver}", approval(signer, request, approver) | changes)


# Approvals


async def test_a_large_transfer_waits_for_its_approvals_and_names_them(replicas: tuple[Harness, Harness]) -> None:
    one, other = replicas
    request = one.request("t-1", 0, value_wei=101)
    refused = await refusal(one.sign(request))
    assert (refused.reason, refused.details) == (Reason.APPROVAL_REQUIRED, {"needed": 2, "given": 0})
    leaf_hashes = [await approve(one, request, "ann")]
    assert await reason(other.sign(request)) is Reason.APPROVAL_REQUIRED
    # Nothing was entered, and nothing is held.
    assert one.log.link("t-1") == []
    assert one.server.execute("SELECT count(*) FROM signer.register") == "0"
    leaf_hashes.append(await approve(one, request, "bob"))
    await other.sign(request)
    intent = one.log.link("t-1")[0]
    check_body(Kind.INTENT, intent.body)
    assert intent.body["policy"]["approvals"] == [to_hex(one) for one in leaf_hashes]
    assert "assets.eip155:31337/native.approvals: 2 above 100" in intent.body["policy"]["rules"]
    # A repeated call and a bump do not ask for them again.
    one.log.available = True
    await one.sign(request)
    bump = one.request("t-1", 0, value_wei=101, fee_wei=2 * 10**9)
    bump.traceparent = request.traceparent
    await one.sign(bump)
    assert "approvals" not in one.log.link("t-1")[2].body["policy"]


async def test_a_small_transfer_needs_none_and_reads_none(signer: Harness) -> None:
    calls: list[str] = []
    signer.log.GetLink = lambda *_, **__: calls.append("read")  # type: ignore[method-assign, assignment, return-value]
    await signer.sign(signer.request("t-1", 0, value_wei=100))
    assert calls == []
    assert "approvals" not in signer.log.link("t-1")[0].body["policy"]


async def test_the_requester_does_not_approve_and_a_rejection_is_final(signer: Harness) -> None:
    request = signer.request("t-1", 0, value_wei=101)
    for approver in ("ann", "alice", "mallory"):
        await approve(signer, request, approver)
    assert request.requester.actor == "alice"
    assert await reason(signer.sign(request)) is Reason.APPROVAL_REQUIRED
    await approve(signer, request, "cid", decision="reject")
    await approve(signer, request, "bob")
    assert await reason(signer.sign(request)) is Reason.APPROVAL_REJECTED
    assert signer.log.link("t-1") == []
    assert signer.asked() == []


async def test_an_altered_transfer_has_no_approvals(signer: Harness) -> None:
    request = signer.request("t-1", 0, value_wei=101)
    for approver in ("ann", "bob"):
        await approve(signer, request, approver)
    altered = signer.request("t-1", 0, value_wei=102)
    assert await reason(signer.sign(altered)) is Reason.APPROVAL_MISMATCH
    # Nonce and fees are not what was approved.
    await signer.sign(signer.request("t-1", 5, value_wei=101, fee_wei=7 * 10**9))


async def test_a_log_that_cannot_be_read_is_tried_again(signer: Harness) -> None:
    async def down(*_: object, **__: object) -> None:
        raise WalletError(Reason.SERVICE_UNAVAILABLE, "evidence: down")

    request, small = signer.request("t-1", 0, value_wei=101), signer.request("t-2", 1)
    original, signer.log.GetLink = signer.log.GetLink, down  # type: ignore[method-assign, assignment]
    assert await reason(signer.sign_all(request, small)) is Reason.EVIDENCE_UNAVAILABLE
    signer.log.GetLink = original  # type: ignore[method-assign]
    results = await signer.sign_all(request, small)
    assert [one.error.reason or "signed" for one in results] == ["APPROVAL_REQUIRED", "signed"]


async def test_check_policy_says_what_approvals_it_takes(signer: Harness) -> None:
    terms = common_pb2.Terms(chain_id="eip155:31337", from_address=signer.sender, to_address=RECEIVER, value_wei="101")
    checks = [signer_pb2.PolicyCheck(transfer_id="t-1", terms=terms)]
    terms.value_wei = "100"
    checks.append(signer_pb2.PolicyCheck(transfer_id="t-2", terms=terms))
    large, small = (await signer.api.CheckPolicy(signer_pb2.CheckPolicyRequest(checks=checks), None)).decisions
    assert large.allowed
    assert (large.approval.count, large.approval.valid_s) == (2, 3600)
    assert list(large.approval.approvers) == ["alice", "ann", "bob", "cid"]
    assert not small.HasField("approval")


def closed_today(policy: bytes) -> bytes:
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    # Tomorrow too: the test may run over midnight.
    open_days = [day for place, day in enumerate(days) if (place - datetime.now(UTC).weekday()) % 7 not in (0, 1)]
    hours = f'  hours: [{{days: [{", ".join(open_days)}], from: "00:00", to: "24:00"}}]\n'
    return policy.replace(b"rules:\n", b"rules:\n" + hours.encode())


async def test_nothing_is_signed_outside_of_the_hours(
    service_database: Callable[[str], ServiceDatabase], tmp_path: Path
) -> None:
    keys = FakeKeys()
    own, sender = service_database("signer"), keys.add("k1")
    async with signer_replica(own, tmp_path, Log(), keys, sender, closed_today(POLICY)) as signer:
        refused = await refusal(signer.sign(signer.request("t-1", 0)))
        assert refused.reason is Reason.POLICY_DENIED
        assert str(refused.details["rule"]).endswith("UTC is outside")
        assert signer.log.kinds("t-1") == ["intent"]


async def test_a_link_that_was_allowed_is_not_denied_by_a_later_policy(signer: Harness) -> None:
    request = signer.request("t-1", 0, value_wei=60)
    signer.log.fail_before.add(1)
    await refusal(signer.sign(request))
    document = next_policy(limit=10)
    for approver in ("ann", "bob"):
        await approve_policy(signer, document, approver)
    await activate(signer, document)
    # Asked again from the beginning, as by a worker that was left behind.
    terms = common_pb2.Terms(chain_id="eip155:31337", from_address=signer.sender, to_address=RECEIVER, value_wei="60")
    check = signer_pb2.PolicyCheck(
        transfer_id="t-1",
        terms=terms,
        draft_unsigned_tx=request.unsigned_tx,
        key=request.key,
        requester=request.requester,
        traceparent=request.traceparent,
    )
    call = signer.api.CheckPolicy(signer_pb2.CheckPolicyRequest(checks=[check]), None)
    assert await reason(call) is Reason.NONCE_CONFLICT
    await signer.sign(request)
    assert signer.log.link("t-1")[0].body["policy"]["version"] == 1


# Approvers whose keys the policy names

BOB, EVE = SigningApprover(), SigningApprover()
KEYED = POLICY.replace(
    b"approvers: [ann, bob, cid, alice]}",
    f"approvers: [ann, {{name: bob, key: {BOB.fingerprint}}}]}}\n"
    f"changes: {{approvers: [ann, {{name: bob, key: {BOB.fingerprint}}}, eve]}}".encode(),
)


@pytest.fixture
async def keyed(service_database: Callable[[str], ServiceDatabase], tmp_path: Path) -> AsyncIterator[Harness]:
    keys = FakeKeys()
    async with signer_replica(service_database("signer"), tmp_path, Log(), keys, keys.add("k1"), KEYED) as signer:
        yield signer


def kept(request: SignedRequest) -> dict[str, str]:
    return request.document()


async def test_approvals_that_gateway_invents_sign_nothing(keyed: Harness) -> None:
    """All that a gateway can make without bob's key: it may enter what it likes."""
    for place, invent in enumerate(
        (
            lambda link_id, terms: None,
            lambda link_id, terms: EVE.approval(link_id, terms),
            lambda link_id, terms: BOB.approval("t-elsewhere", terms),
            lambda link_id, terms: BOB.approval(link_id, to_hex(bytes(32))),
            lambda link_id, terms: BOB.request(f"/v1/transfers/{link_id}:reject", BOB.approval(link_id, terms).content),
        )
    ):
        request = keyed.request(f"t-{place}", place, value_wei=101)
        terms = approval(keyed, request, "bob")["terms_sha256"]
        await approve(keyed, request, "ann")
        invented = invent(request.transfer_id, terms)
        await approve(keyed, request, "bob", **({} if invented is None else {"client_signature": kept(invented)}))
        refused = await refusal(keyed.sign(request))
        assert refused.reason is Reason.APPROVAL_REQUIRED
        assert (refused.details["given"], refused.details["unproven"]) == (1, 1)
        assert "the approver's signature" in str(refused.details["rule"])
        assert keyed.log.link(request.transfer_id) == []
    assert keyed.asked() == []
    # What bob has signed for one transfer is nothing for the same again.
    request = keyed.request("t-9", 9, value_wei=101)
    signed = BOB.approval("t-9", approval(keyed, request, "bob")["terms_sha256"])
    again = keyed.request("t-10", 10, value_wei=101)
    for one in (request, again):
        await approve(keyed, one, "ann")
        await approve(keyed, one, "bob", client_signature=kept(signed))
    await keyed.sign(request)
    assert await reason(keyed.sign(again)) is Reason.APPROVAL_REQUIRED


async def test_a_change_that_gateway_approves_by_itself_changes_nothing(keyed: Harness) -> None:
    document = next_policy(limit=10)
    digest = to_hex(sha256(document).digest())
    await approve_policy(keyed, document, "ann")
    # Names that nobody has, a name without its key, and a name with somebody else's.
    await approve_policy(keyed, document, "mallory")
    await approve_policy(keyed, document, "bob")
    refused = await refusal(activate(keyed, document))
    assert (refused.reason, refused.details["unproven"]) == (Reason.APPROVAL_REQUIRED, 1)
    other = next_policy(limit=11)
    await approve_policy(keyed, other, "ann")
    await approve_policy(keyed, other, "bob", client_signature=kept(BOB.policy_approval(digest)))
    assert await reason(activate(keyed, other)) is Reason.APPROVAL_REQUIRED
    assert (await in_force(keyed)).version == 1
    third = next_policy(limit=12)
    signed = BOB.policy_approval(to_hex(sha256(third).digest()))
    await approve_policy(keyed, third, "ann")
    await approve_policy(keyed, third, "bob", client_signature=kept(signed))
    assert (await activate(keyed, third)).version == 2


async def test_the_signer_tells_whose_approvals_are_signed(keyed: Harness) -> None:
    terms = common_pb2.Terms(chain_id="eip155:31337", from_address=keyed.sender, to_address=RECEIVER, value_wei="101")
    check = signer_pb2.PolicyCheck(transfer_id="t-1", terms=terms)
    (decision,) = (await keyed.api.CheckPolicy(signer_pb2.CheckPolicyRequest(checks=[check]), None)).decisions
    assert dict(decision.approval.keys) == {"bob": BOB.fingerprint}
    changes = (await in_force(keyed)).changes
    assert (changes.count, list(changes.approvers)) == (2, ["ann", "bob", "eve"])
    assert dict(changes.keys) == {"bob": BOB.fingerprint}


async def test_a_version_that_came_in_between_judges_the_next_one(keyed: Harness) -> None:
    """Approved under the first, activated when the second names other approvers."""
    second = next_policy(2) + b"changes: {approvers: [cid, dan]}\n"
    third = next_policy(3)
    for document in (second, third):
        await approve_policy(keyed, document, "ann")
        await approve_policy(keyed, document, "eve")
    store, supersede = PolicyStore, PolicyStore.supersede

    async def overtaken(self: PolicyStore, row: PolicyRow, version: int) -> PolicyRow:
        with mock.patch.object(store, "supersede", supersede):
            await activate(keyed, second)
        return await supersede(self, row, version)

    with mock.patch.object(store, "supersede", overtaken):
        assert await reason(activate(keyed, third)) is Reason.APPROVAL_REQUIRED
    assert (await in_force(keyed)).version == 2


# Changing the policy


def next_policy(version: int = 2, limit: int = 10) -> bytes:
    text = POLICY.decode().replace("version: 1", f"version: {version}").replace('"1000"', f'"{limit}"')
    return text.replace(text[text.index("      approvals:") :], "").encode()


async def check(signer: Harness, document: bytes) -> signer_pb2.Policy:
    reply: signer_pb2.Policy = await signer.api.CheckPolicyDocument(
        signer_pb2.CheckPolicyDocumentRequest(document=document), None
    )
    return reply


async def activate(signer: Harness, document: bytes) -> signer_pb2.Policy:
    request = signer_pb2.ActivatePolicyRequest(document=document, traceparent=new_traceparent())
    reply: signer_pb2.Policy = await signer.api.ActivatePolicy(request, None)
    return reply


async def in_force(signer: Harness) -> signer_pb2.Policy:
    reply: signer_pb2.Policy = await signer.api.GetPolicy(signer_pb2.GetPolicyRequest(), None)
    return reply


async def approve_policy(signer: Harness, document: bytes, name: str, **changes: Any) -> bytes:
    digest = sha256(document).digest()
    body = {
        "act": "approval",
        "policy_sha256": to_hex(digest),
        "decision": "approve",
        "approver": name,
        "proposer": "paul",
        "expires_at": format_time(datetime.now(UTC) + HOUR),
        "at": format_time(datetime.now(UTC)),
    }
    return await enter(signer.log, f"policy:{digest.hex()[:32]}:approval", f"approval:{name}", body | changes)


async def test_two_approvers_put_a_policy_in_force_on_every_replica(replicas: tuple[Harness, Harness]) -> None:
    one, other = replicas
    document = next_policy()
    assert (await check(one, document)).version == 2
    assert await reason(activate(one, document)) is Reason.APPROVAL_REQUIRED
    leaf_hashes = [await approve_policy(one, document, "ann")]
    assert await reason(activate(one, document)) is Reason.APPROVAL_REQUIRED
    assert (await in_force(one)).version == 1
    leaf_hashes.append(await approve_policy(one, document, "bob"))
    activated = await activate(one, document)
    assert (activated.version, activated.sha256) == (2, sha256(document).digest())
    assert await activate(one, document) == activated
    (entry,) = one.log.link(f"policy:2:{sha256(document).hexdigest()[:16]}")
    assert entry.body["document"].encode() == document
    assert entry.body["approvals"] == [to_hex(one) for one in leaf_hashes]
    # The other replica decides by it at once, whether it has heard of it or not.
    refused = await refusal(other.sign(other.request("t-1", 0, value_wei=11)))
    assert refused.reason is Reason.POLICY_DENIED
    await other.sign(other.request("t-2", 0, value_wei=10))
    assert other.log.link("t-2")[0].body["policy"]["version"] == 2
    assert (await in_force(other)).version == 2


async def test_no_replica_signs_by_a_policy_that_is_not_in_force(replicas: tuple[Harness, Harness]) -> None:
    one, other = replicas
    document = next_policy(limit=50)
    for approver in ("ann", "bob"):
        await approve_policy(one, document, approver)
    calls: list[Awaitable[object]] = [
        replicas[nonce % 2].sign(one.request(f"t-{nonce}", nonce, value_wei=60)) for nonce in range(30)
    ]
    calls.insert(15, activate(one, document))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, WalletError)]
    assert {one.reason for one in refused} <= {Reason.POLICY_DENIED}
    # Whoever comes after it is decided by it, on either replica.
    for replica, nonce in ((other, 98), (one, 99)):
        assert (
            await reason(replica.sign(replica.request(f"large-{nonce}", nonce, value_wei=60))) is Reason.POLICY_DENIED
        )
        await replica.sign(replica.request(f"small-{nonce}", nonce, value_wei=50))
        assert one.log.link(f"small-{nonce}")[0].body["policy"]["version"] == 2
    # What was signed by the first was entered under the first: no intent names a policy that its row does not.
    for link_id, version in (
        line.split("|") for line in one.server.execute("SELECT link_id, policy_version FROM signer.register").split()
    ):
        assert one.log.link(link_id)[0].body["policy"]["version"] == int(version)


async def test_who_may_approve_a_policy(signer: Harness) -> None:
    for version, changes, expected in (
        (2, {"approver": "paul"}, Reason.APPROVAL_REQUIRED),  # the proposer
        (3, {"approver": "ann"}, Reason.APPROVAL_REQUIRED),  # once more
        (4, {"decision": "reject"}, Reason.APPROVAL_REJECTED),
        (5, {"policy_sha256": to_hex(bytes(32))}, Reason.APPROVAL_MISMATCH),
        (6, {"expires_at": "2020-01-01T00:00:00.000000Z"}, Reason.APPROVAL_EXPIRED),
        # Another proposer's name does not make an approver of the first.
        (7, {"proposer": "ann"}, Reason.APPROVAL_REQUIRED),
    ):
        document = next_policy(version)
        await approve_policy(signer, document, "ann")
        await approve_policy(signer, document, "bob", **changes)
        assert await reason(activate(signer, document)) is expected
    assert (await in_force(signer)).version == 1


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (b"version: 2", "policy.name"),
        (next_policy().replace(b"native", b"gold"), "rules.assets.eip155:31337/gold"),
        (next_policy() + b"      velocity: [{window_s: 60, limit: 1}]\n", "rules.assets.eip155:31337/native.velocity"),
    ],
)
async def test_what_is_no_policy_is_refused_by_path(signer: Harness, document: bytes, field: str) -> None:
    for call in (check, activate):
        refused = await refusal(call(signer, document))
        assert (refused.reason, refused.details["field"]) == (Reason.INVALID_REQUEST, field)


async def test_a_version_is_above_the_one_in_force(signer: Harness) -> None:
    other = next_policy(1)
    for approver in ("ann", "bob"):
        await approve_policy(signer, other, approver)
    assert (await check(signer, other)).version == 1
    refused = await refusal(activate(signer, other))
    assert (refused.reason, refused.details["field"]) == (Reason.ALREADY_EXISTS, "policy.version")
    assert (await activate(signer, POLICY)).document == POLICY


async def test_a_document_tells_the_accounts_that_it_is_about(signer: Harness) -> None:
    account = f"eip155:31337:0x{'ab' * 20}"
    document = next_policy() + f"accounts: {{'{account}': {{}}}}\n".encode()
    assert list((await check(signer, document)).accounts) == [account]
    assert (await check(signer, POLICY)).version == 1


async def test_a_policy_file_seeds_an_empty_database_and_is_ignored_after(
    service_database: Callable[[str], ServiceDatabase], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, log, keys = service_database("signer"), Log(), FakeKeys()
    sender = keys.add("k1")
    async with signer_replica(own, tmp_path, log, keys, sender, POLICY) as signer:
        first = await in_force(signer)
        assert first.document == POLICY
        assert not first.ignored_file_sha256
    other = next_policy(9)
    for file in (other, b"not a policy: ["):
        async with signer_replica(own, tmp_path, log, keys, sender, file) as signer:
            policy = await in_force(signer)
            assert policy.document == POLICY
            assert policy.ignored_file_sha256 == sha256(file).digest()
    assert "is ignored" in caplog.text


async def test_a_policy_file_that_contradicts_itself_seeds_nothing(
    service_database: Callable[[str], ServiceDatabase], tmp_path: Path
) -> None:
    keys = FakeKeys()
    file = POLICY.replace(b'above: "100"', b'above: "1000"')
    refused = None
    try:
        async with signer_replica(service_database("signer"), tmp_path, Log(), keys, keys.add("k1"), file):
            pass
    except WalletError as error:
        refused = error
    assert refused is not None
    assert refused.details["field"] == "rules.assets.eip155:31337/native.approvals.above"
