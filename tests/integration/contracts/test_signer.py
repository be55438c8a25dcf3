"""What gateway rests on in `signer`."""

from __future__ import annotations

import hashlib

import pytest

from protos.wallet.v1 import signer_pb2 as pb
from protos.wallet.v1.txbuilder_pb2 import BuildSupersedingRequest, BumpTransactionRequest
from services.core.errors import WalletError
from services.core.transactions import tx_hash
from services.runtime.telemetry import new_traceparent
from tests.fakes.signer import DENIED_VALUE_WEI
from tests.integration.contracts.peers import (
    Account,
    Peers,
    build_request,
    refusal,
    refused_at,
    requester,
    sign_request,
    terms,
    unique,
)


def policy_check(account: Account, value_wei: str = "1", draft: bytes = b"") -> pb.PolicyCheck:
    """Of a new transfer."""
    return pb.PolicyCheck(
        transfer_id=unique("t"),
        terms=terms(account, value_wei),
        draft_unsigned_tx=draft,
        key=account.key,
        requester=requester(),
        traceparent=new_traceparent(),
    )


async def check(peers: Peers, *checks: pb.PolicyCheck) -> list[pb.PolicyDecision]:
    return list((await peers.signer.CheckPolicy(pb.CheckPolicyRequest(checks=checks))).decisions)


async def denied_draft(peers: Peers, account: Account) -> bytes:
    draft = await peers.txbuilder.DraftTransaction(build_request(account, DENIED_VALUE_WEI))
    return bytes(draft.unsigned_tx)


async def void(peers: Peers, transfer_id: str) -> None:
    await peers.signer.VoidLink(pb.VoidLinkRequest(transfer_id=transfer_id, cause="contract"))


async def test_policy_decides_each_in_order_and_tells_which_policy_it_was(peers: Peers) -> None:
    account = await peers.account()
    decisions = await check(peers, *(policy_check(account, wei) for wei in ("1", DENIED_VALUE_WEI, "2")))
    assert [one.allowed for one in decisions] == [True, False, True]
    assert all(one.rules for one in decisions)
    # Nothing is recorded without a draft.
    assert not any(one.HasField("evidence_index") for one in decisions)
    policy = await peers.signer.GetPolicy(pb.GetPolicyRequest())
    assert policy.version >= 1
    assert policy.sha256 == hashlib.sha256(policy.document).digest()
    assert {(one.policy_version, one.policy_sha256) for one in decisions} == {(policy.version, policy.sha256)}


async def test_a_refusal_with_a_draft_is_recorded_once(peers: Peers) -> None:
    account = await peers.account()
    denied = policy_check(account, DENIED_VALUE_WEI, await denied_draft(peers, account))
    allowed = policy_check(account, "1", (await peers.txbuilder.DraftTransaction(build_request(account))).unsigned_tx)
    first = await check(peers, allowed, denied)
    assert [one.HasField("evidence_index") for one in first] == [False, True]
    (again,) = await check(peers, denied)
    assert again.evidence_index == first[1].evidence_index
    # A denied link is closed: whatever comes later under its id is not signed.
    built = await peers.built(account)
    built.transfer_id = denied.transfer_id
    assert (await refusal(peers.signer.SignTransaction(sign_request(account, built))))[0] == "POLICY_DENIED"


async def test_a_draft_does_what_its_terms_say(peers: Peers) -> None:
    account = await peers.account()
    other = policy_check(account, "1", await denied_draft(peers, account))
    junk = policy_check(account, "1", b"\x02junk")
    for wrong, field in ((other, "draft_unsigned_tx"), (junk, "unsigned_tx")):
        assert await refusal(check(peers, policy_check(account), wrong)) == ("INVALID_REQUEST", field)
        assert await refused_at(check(peers, policy_check(account), wrong)) == "1"


async def test_a_link_is_signed_once(peers: Peers) -> None:
    account = await peers.account()
    request = sign_request(account, await peers.built(account))
    signed = await peers.signer.SignTransaction(request)
    assert (signed.transfer_id, signed.tx_hash) == (request.transfer_id, tx_hash(signed.raw_tx))
    assert signed.intent_index < signed.signature_index
    assert await peers.signer.SignTransaction(request) == signed
    batch = await peers.signer.SignTransactions(pb.SignTransactionsRequest(items=[request]))
    assert [one.signed for one in batch.results] == [signed]
    other = sign_request(account, await peers.built(account))
    other.transfer_id = request.transfer_id
    assert await refusal(peers.signer.SignTransaction(other)) == ("ALREADY_EXISTS", "unsigned_tx")


async def test_a_nonce_belongs_to_one_link(peers: Peers) -> None:
    account = await peers.account()
    request = sign_request(account, await peers.built(account))
    await peers.signer.SignTransaction(request)
    request.transfer_id = unique("t")
    assert (await refusal(peers.signer.SignTransaction(request)))[0] == "NONCE_REGISTERED"


async def test_what_policy_denies_is_not_signed(peers: Peers) -> None:
    account = await peers.account()
    draft = await peers.txbuilder.DraftTransaction(build_request(account, DENIED_VALUE_WEI))
    with pytest.raises(WalletError) as raised:
        await peers.signer.SignTransaction(sign_request(account, draft))
    assert raised.value.reason.name == "POLICY_DENIED"
    assert raised.value.details["rule"]


async def test_items_of_a_batch_are_independent(peers: Peers) -> None:
    account = await peers.account()
    built = [await peers.built(account), await peers.built(account)]
    denied = await peers.txbuilder.DraftTransaction(build_request(account, DENIED_VALUE_WEI))
    items = [sign_request(account, one) for one in (built[0], denied, built[1])]
    batch = await peers.signer.SignTransactions(pb.SignTransactionsRequest(items=items))
    assert [one.WhichOneof("result") for one in batch.results] == ["signed", "error", "signed"]
    assert batch.results[1].error.reason == "POLICY_DENIED"
    assert batch.results[1].error.details["rule"]
    assert [batch.results[place].signed.transfer_id for place in (0, 2)] == [one.transfer_id for one in built]


async def test_a_malformed_item_refuses_its_batch(peers: Peers) -> None:
    account = await peers.account()
    good = sign_request(account, await peers.built(account))
    for field, value in (("unsigned_tx", b"\x02junk"), ("traceparent", "no")):
        bad = sign_request(account, await peers.built(account))
        setattr(bad, field, value)
        items = pb.SignTransactionsRequest(items=[good, bad])
        assert await refusal(peers.signer.SignTransactions(items)) == ("INVALID_REQUEST", field)
        assert await refused_at(peers.signer.SignTransactions(items)) == "1"
    twice = pb.SignTransactionsRequest(items=[good, good])
    assert await refusal(peers.signer.SignTransactions(twice)) == ("INVALID_REQUEST", "transfer_id")
    # The good one was not signed.
    await void(peers, good.transfer_id)


async def test_a_voided_link_is_never_signed(peers: Peers) -> None:
    account = await peers.account()
    request = sign_request(account, await peers.built(account))
    for _ in range(2):
        await void(peers, request.transfer_id)
    assert (await refusal(peers.signer.SignTransaction(request)))[0] == "LINK_VOIDED"
    batch = await peers.signer.SignTransactions(pb.SignTransactionsRequest(items=[request]))
    assert batch.results[0].error.reason == "LINK_VOIDED"
    # Its nonce is free for another link.
    request.transfer_id = unique("t")
    assert (await peers.signer.SignTransaction(request)).raw_tx


async def test_a_signed_link_is_not_voided(peers: Peers) -> None:
    account = await peers.account()
    request = sign_request(account, await peers.built(account))
    signed = await peers.signer.SignTransaction(request)
    assert (await refusal(void(peers, request.transfer_id)))[0] == "ALREADY_SIGNED"
    assert await peers.signer.SignTransaction(request) == signed


async def test_a_fee_bump_of_txbuilder_is_signed_in_the_same_link(peers: Peers) -> None:
    account = await peers.account()
    first = sign_request(account, await peers.built(account))
    signed = await peers.signer.SignTransaction(first)
    bump = pb.SignTransactionRequest()
    bump.CopyFrom(first)
    built = await peers.txbuilder.BumpTransaction(BumpTransactionRequest(transfer_id=first.transfer_id, replacement=1))
    bump.unsigned_tx = built.unsigned_tx
    bumped = await peers.signer.SignTransaction(bump)
    assert bumped.raw_tx != signed.raw_tx
    assert await peers.signer.SignTransaction(bump) == bumped
    assert (await peers.signer.SignTransaction(first)).raw_tx == signed.raw_tx


async def test_a_superseding_link_of_txbuilder_ends_the_other(peers: Peers) -> None:
    account = await peers.account()
    built = await peers.built(account)
    first = sign_request(account, built)
    await peers.signer.SignTransaction(first)
    link_id = f"{first.transfer_id}:cancel"
    superseding = sign_request(
        account,
        await peers.txbuilder.BuildSuperseding(
            BuildSupersedingRequest(
                transfer_id=link_id,
                chain_id=account.chain_id,
                from_address=account.address,
                nonce=built.nonce,
                supersedes=first.transfer_id,
            )
        ),
    )
    assert superseding.transfer_id == link_id
    superseding.supersedes = unique("t")
    assert await refusal(peers.signer.SignTransaction(superseding)) == ("NONCE_REGISTERED", "supersedes")
    superseding.supersedes = first.transfer_id
    signed = await peers.signer.SignTransaction(superseding)
    assert await peers.signer.SignTransaction(superseding) == signed
    assert (await refusal(void(peers, first.transfer_id)))[0] == "ALREADY_SIGNED"


async def test_the_status_says_that_it_could_sign(peers: Peers) -> None:
    status = await peers.signer.GetSignerStatus(pb.GetSignerStatusRequest())
    assert (list(status.missing), bool(status.token_label), status.workers) == ([], True, 1)
    ready = (status.token_ready, status.evidence_ready, status.database_ready, status.transport_key_approved)
    assert ready == (True, True, True, True)
