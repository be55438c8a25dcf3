"""What becomes of a transfer that is not mined: fee bumps, superseding links, spent nonces, gaps, a broken chain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from protos.wallet.v1 import txbuilder_pb2
from services.core.errors import Reason, WalletError
from services.core.transactions import decode_unsigned
from services.gateway import replacing
from tests.fakes.broadcaster import (
    CHAIN_ID,
    FINALIZED,
    INCLUDED,
    INSUFFICIENT_FUNDS,
    NONCE_SPENT,
    NOT_MINED,
    SUBMITTED,
    UNDERPRICED,
)
from tests.integration.gateway_harness import DEADLINE_S, Bench, Client, plain


@pytest.fixture
def bench(bench: Bench) -> Bench:
    bench.environment["WALLET_GAP_AFTER_S"] = "0"
    return bench


async def submitted(client: Client) -> str:
    transfer_id = str((await client.post(plain("7"))).json()["id"])
    await client.until(transfer_id, "SUBMITTED")
    return transfer_id


async def cancelled(client: Client, transfer_id: str) -> dict[str, Any]:
    response = await client.http.post(f"/v1/transfers/{transfer_id}:cancel")
    assert response.status_code == 202, response.text
    return dict(response.json())


# -- Fee bumps


async def test_a_stalled_transfer_is_bumped_and_whichever_is_mined_counts(client: Client, bench: Bench) -> None:
    transfer_id = await submitted(client)
    first = bench.suite.broadcaster.submissions[transfer_id].tx_hash
    bench.suite.broadcaster.stall(transfer_id, NOT_MINED)
    bumped = await client.when(transfer_id, lambda view: view["replacements"] == 1)
    (request,) = bench.suite.signer.bumped[transfer_id]
    old, new = (
        decode_unsigned(bytes(tx)) for tx in (bench.suite.signer.signed[transfer_id].unsigned_tx, request.unsigned_tx)
    )
    assert (new.nonce, new.to, new.value_wei, new.data) == (old.nonce, old.to, old.value_wei, old.data)
    assert new.max_fee_per_gas_wei > old.max_fee_per_gas_wei  # type: ignore[union-attr]
    assert bumped["state"] == "SUBMITTED"
    assert bumped["stall"] is None
    assert bumped["tx_hash"] == "0x" + bench.suite.broadcaster.submissions[transfer_id].tx_hash.hex()
    # The second bump, for the next stall.
    bench.suite.broadcaster.stall(transfer_id, UNDERPRICED)
    await client.when(transfer_id, lambda view: view["replacements"] == 2)
    assert [len(bench.suite.txbuilder.bumps[transfer_id]), len(bench.suite.signer.bumped[transfer_id])] == [2, 2]
    # The first transaction was mined after all.
    bench.suite.broadcaster.submissions[transfer_id].tx_hash = first
    bench.suite.broadcaster.move(transfer_id, INCLUDED, FINALIZED)
    final = await client.until(transfer_id, "FINALIZED")
    assert (final["tx_hash"], final["replacements"], final["stall"]) == ("0x" + first.hex(), 2, None)


async def test_what_is_said_of_an_older_version_is_stale(client: Client, bench: Bench) -> None:
    transfer_id = await submitted(client)
    first = bench.suite.broadcaster.submissions[transfer_id].tx_hash
    bench.suite.broadcaster.stall(transfer_id, NOT_MINED)
    await client.when(transfer_id, lambda view: view["replacements"] == 1)
    bench.suite.broadcaster.stall(transfer_id, NOT_MINED, first)
    bench.suite.broadcaster.stall(transfer_id, INSUFFICIENT_FUNDS)
    # An account without funds is shown, and no higher fee is the answer.
    poor = await client.when(transfer_id, lambda view: view["stall"] == "INSUFFICIENT_FUNDS")
    assert poor["replacements"] == 1
    assert len(bench.suite.txbuilder.bumps[transfer_id]) == 1


async def test_a_bump_above_the_cap_waits_and_the_old_version_goes_on(
    client: Client, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacing, "_CAP_PAUSE_S", 0.5)
    transfer_id = await submitted(client)
    bench.suite.txbuilder.script.refuse("BumpTransaction", WalletError(Reason.FEE_CAP_REACHED, "above the cap"))
    bench.suite.broadcaster.stall(transfer_id, NOT_MINED)
    waiting = await client.when(transfer_id, lambda view: view["stall"] == "FEE_CAP_REACHED")
    assert (waiting["state"], waiting["failure"], waiting["replacements"]) == ("SUBMITTED", None, 0)
    await client.when(transfer_id, lambda view: view["replacements"] == 1)


@pytest.mark.parametrize(
    ("peer", "method"),
    [("txbuilder", "BumpTransaction"), ("signer", "SignTransaction"), ("broadcaster", "SubmitTransaction")],
)
async def test_another_gateway_goes_on_with_a_bump(bench: Bench, peer: str, method: str) -> None:
    """The first gateway ends between a peer's work and its own commit."""
    script = getattr(bench.suite, peer).script
    async with bench.gateway() as client:
        transfer_id = await submitted(client)
        worked = script.hold(method)
        bench.suite.broadcaster.stall(transfer_id, NOT_MINED)
        await asyncio.wait_for(worked.wait(), DEADLINE_S)
    script.release()
    async with bench.gateway() as client:
        await client.when(transfer_id, lambda view: view["replacements"] == 1)
    assert len(bench.suite.txbuilder.bumps[transfer_id]) == len(bench.suite.signer.bumped[transfer_id]) == 1
    assert len({request.raw_tx for request in bench.suite.broadcaster.requests}) == 2


async def test_what_was_mined_meanwhile_is_not_bumped(
    client: Client, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacing, "_MINED_PAUSE_S", 0.5)
    transfer_id = await submitted(client)
    held = bench.suite.txbuilder.script.hold("BumpTransaction")
    bench.suite.broadcaster.stall(transfer_id, NOT_MINED)
    await asyncio.wait_for(held.wait(), DEADLINE_S)
    bench.suite.broadcaster.move(transfer_id, INCLUDED)
    await client.until(transfer_id, "INCLUDED")
    bench.suite.txbuilder.script.release()
    bench.suite.signer.script.refuse("SignTransaction", WalletError(Reason.OUT_OF_ORDER, "it is mined"))
    await client.until_idle()
    assert bench.suite.signer.bumped.get(transfer_id) is None
    # A reorg takes it out again, and it stalls again: the same replacement.
    bench.suite.broadcaster.move(transfer_id, SUBMITTED)
    await client.when(transfer_id, lambda view: view["state"] == "SUBMITTED")
    bench.suite.broadcaster.stall(transfer_id, NOT_MINED)
    await client.when(transfer_id, lambda view: view["replacements"] == 1)
    assert len(bench.suite.txbuilder.bumps[transfer_id]) == 1


# -- A nonce that another transaction spent


async def test_a_signed_transfer_fails_only_when_its_nonce_is_spent(client: Client, bench: Bench) -> None:
    transfer_id = await submitted(client)
    bench.suite.broadcaster.move(transfer_id, NONCE_SPENT)
    failed = await client.until(transfer_id, "FAILED")
    assert failed["failure"]["reason"] == "NONCE_SPENT"
    assert bench.suite.signer.script.calls["VoidLink"] == 0
    assert bench.suite.txbuilder.released == []


async def test_no_other_way_leads_a_signed_transfer_to_failed(client: Client, bench: Bench) -> None:
    transfer_id = await submitted(client)
    with pytest.raises(Exception, match="signed_fails_only_when_spent"):
        bench.database.server.execute(
            f"UPDATE gateway.transfers SET state = 'FAILED', failure = '{{}}' WHERE transfer_id = '{transfer_id}'"
        )


# -- Cancelling


@pytest.mark.parametrize(("peer", "method"), [("signer", "CheckPolicy"), ("txbuilder", "BuildTransaction")])
async def test_a_transfer_without_a_signature_is_cancelled_at_once(
    client: Client, bench: Bench, peer: str, method: str
) -> None:
    held = getattr(bench.suite, peer).script.hold(method)
    transfer_id = (await client.post(plain())).json()["id"]
    await asyncio.wait_for(held.wait(), DEADLINE_S)
    first = await cancelled(client, transfer_id)
    assert (first["id"], first["state"], first["failure"]["reason"]) == (transfer_id, "FAILED", "TRANSFER_CANCELLED")
    assert await cancelled(client, transfer_id) == first
    getattr(bench.suite, peer).script.release()
    assert bench.suite.signer.voided == {transfer_id}
    assert bench.suite.txbuilder.released == [transfer_id]
    # The worker that was in the middle of it commits nothing more.
    await client.until_idle()
    assert (await client.transfer(transfer_id))["state"] == "FAILED"
    assert bench.suite.signer.signed == {}


async def test_a_signature_that_came_first_is_superseded(client: Client, bench: Bench) -> None:
    """The cancel meets a signer that has signed and not yet answered."""
    held = bench.suite.signer.script.hold("SignTransaction")
    transfer_id = (await client.post(plain())).json()["id"]
    await asyncio.wait_for(held.wait(), DEADLINE_S)
    link = await cancelled(client, transfer_id)
    bench.suite.signer.script.release()
    assert (link["id"], link["supersedes"]) == (f"{transfer_id}:cancel", transfer_id)
    original = await client.until(transfer_id, "SUBMITTED")
    assert original["superseded_by"] == link["id"]
    await client.until(link["id"], "SUBMITTED")


async def test_a_submitted_transfer_is_superseded_and_the_chain_decides(client: Client, bench: Bench) -> None:
    transfer_id = await submitted(client)
    link = await cancelled(client, transfer_id)
    assert link["id"] == f"{transfer_id}:cancel"
    assert (await cancelled(client, transfer_id))["id"] == link["id"]
    sent = await client.until(link["id"], "SUBMITTED")
    signed = bench.suite.signer.signed[link["id"]]
    tx = decode_unsigned(bytes(signed.unsigned_tx))
    assert (tx.to, tx.value_wei, tx.data, tx.nonce) == (signed.from_address, 0, b"", sent["nonce"])
    assert signed.supersedes == transfer_id
    assert signed.requester.actor == "operator-name"
    # Everything that a transfer causes is in its trace.
    assert sent["trace_id"] == (await client.transfer(transfer_id))["trace_id"]
    assert bench.suite.signer.script.calls["CheckPolicy"] == 1
    # The original has its nonce spent before we hear that the superseding one is final.
    bench.suite.broadcaster.move(transfer_id, NONCE_SPENT)
    bench.suite.broadcaster.move(link["id"], INCLUDED)
    await client.until(link["id"], "INCLUDED")
    assert (await client.transfer(transfer_id))["state"] == "SUBMITTED"
    bench.suite.broadcaster.move(link["id"], FINALIZED)
    assert (await client.until(transfer_id, "FAILED"))["failure"]["reason"] == "SUPERSEDED"


async def test_a_superseding_transfer_that_failed_unsigned_makes_room_for_another(client: Client, bench: Bench) -> None:
    transfer_id = await submitted(client)
    bench.suite.signer.script.refuse("SignTransaction", WalletError(Reason.KEY_NOT_FOUND, "gone"))
    first = await cancelled(client, transfer_id)
    failed = await client.until(first["id"], "FAILED")
    assert (failed["id"], failed["failure"]["reason"]) == (f"{transfer_id}:cancel", "KEY_NOT_FOUND")
    assert first["id"] in bench.suite.signer.voided
    # The original goes on, and can be bumped.
    bench.suite.broadcaster.stall(transfer_id, NOT_MINED)
    await client.when(transfer_id, lambda view: view["replacements"] == 1)
    second = await cancelled(client, transfer_id)
    assert (second["id"], second["supersedes"]) == (f"{transfer_id}:cancel.1", transfer_id)
    await client.until(second["id"], "SUBMITTED")
    assert bench.suite.signer.signed[second["id"]].requester.actor == "operator-name"
    assert (await cancelled(client, transfer_id))["id"] == second["id"]
    assert (await client.transfer(transfer_id))["superseded_by"] == second["id"]


async def test_a_superseding_transfer_fails_when_the_original_was_mined(client: Client, bench: Bench) -> None:
    transfer_id = await submitted(client)
    link = await cancelled(client, transfer_id)
    await client.until(link["id"], "SUBMITTED")
    bench.suite.broadcaster.move(transfer_id, INCLUDED, FINALIZED)
    bench.suite.broadcaster.move(link["id"], NONCE_SPENT)
    assert (await client.until(link["id"], "FAILED"))["failure"]["reason"] == "NONCE_SPENT"
    assert (await client.until(transfer_id, "FINALIZED"))["failure"] is None


async def test_both_fail_when_a_stranger_spent_the_nonce(client: Client, bench: Bench) -> None:
    transfer_id = await submitted(client)
    link = await cancelled(client, transfer_id)
    await client.until(link["id"], "SUBMITTED")
    bench.suite.broadcaster.move(transfer_id, NONCE_SPENT)
    bench.suite.broadcaster.move(link["id"], NONCE_SPENT)
    for name in (transfer_id, link["id"]):
        assert (await client.until(name, "FAILED"))["failure"]["reason"] == "NONCE_SPENT"


async def test_a_superseding_transfer_is_bumped_and_the_superseded_is_not(client: Client, bench: Bench) -> None:
    transfer_id = await submitted(client)
    link = await cancelled(client, transfer_id)
    await client.until(link["id"], "SUBMITTED")
    bench.suite.broadcaster.stall(transfer_id, UNDERPRICED)
    bench.suite.broadcaster.stall(link["id"], NOT_MINED)
    await client.when(link["id"], lambda view: view["replacements"] == 1)
    assert bench.suite.signer.bumped[link["id"]][0].supersedes == transfer_id
    assert (await client.transfer(transfer_id))["stall"] == "UNDERPRICED"
    assert transfer_id not in bench.suite.txbuilder.bumps


async def test_what_cannot_be_cancelled_is_refused(client: Client, bench: Bench) -> None:
    async def refusal(name: str) -> tuple[int, str]:
        response = await client.http.post(f"/v1/transfers/{name}:cancel")
        return response.status_code, response.json()["reason"]

    transfer_id = await submitted(client)
    bench.suite.broadcaster.move(transfer_id, INCLUDED)
    await client.until(transfer_id, "INCLUDED")
    assert await refusal(transfer_id) == (409, "TRANSFER_CLOSED")
    bench.suite.broadcaster.move(transfer_id, FINALIZED)
    await client.until(transfer_id, "FINALIZED")
    assert await refusal(transfer_id) == (409, "TRANSFER_CLOSED")
    assert await refusal("t-unknown") == (404, "NOT_FOUND")
    other = await submitted(client)
    link = await cancelled(client, other)
    assert await refusal(link["id"]) == (400, "INVALID_REQUEST")


# -- Gaps


async def test_a_nonce_that_was_given_back_is_filled(client: Client, bench: Bench) -> None:
    account = bench.account
    gap = txbuilder_pb2.Gap(chain_id=CHAIN_ID, from_address=account.address, nonce=5)
    bench.suite.txbuilder.gaps = [gap]
    name = f"gap:31337:{account.address.hex()}:5"
    await client.appears(name)
    link = await client.until(name, "SUBMITTED")
    assert (link["nonce"], link["supersedes"], link["value_wei"]) == (5, "", "0")
    assert bench.suite.signer.signed[name].HasField("supersedes")
    # While it is on its way it is not filled a second time; one that failed is closed, and the next one fills it.
    bench.suite.broadcaster.move(name, NONCE_SPENT)
    await client.until(name, "FAILED")
    await client.appears(f"{name}.1")


async def test_gaps_of_later_pages_are_filled_in_the_same_round(client: Client, bench: Bench) -> None:
    account = bench.account
    bench.suite.txbuilder.gaps_a_page = 1
    bench.suite.txbuilder.gaps = [
        txbuilder_pb2.Gap(chain_id=CHAIN_ID, from_address=account.address, nonce=nonce) for nonce in (3, 4, 5)
    ]
    for nonce in (3, 4, 5):
        await client.appears(f"gap:31337:{account.address.hex()}:{nonce}")


async def test_a_held_nonce_that_nobody_works_on_is_given_back_or_superseded(client: Client, bench: Bench) -> None:
    account = bench.account

    def held_by(name: str, nonce: int) -> txbuilder_pb2.Gap:
        return txbuilder_pb2.Gap(chain_id=CHAIN_ID, from_address=account.address, nonce=nonce, transfer_id=name)

    # A live transfer's nonce is its own.
    live = await submitted(client)
    bench.suite.txbuilder.gaps = [held_by("t-lost", 8), held_by(live, 0)]
    async with asyncio.timeout(DEADLINE_S):
        while bench.suite.txbuilder.released != ["t-lost"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert bench.suite.signer.voided == {"t-lost"}
    # Signed, and unknown here: only another transaction with its nonce clears the way.
    bench.suite.signer.script.refuse("VoidLink", WalletError(Reason.ALREADY_SIGNED, "signed"))
    bench.suite.signer.script.refuse("SignTransaction", WalletError(Reason.SERVICE_UNAVAILABLE, "down"))
    bench.suite.txbuilder.gaps = [held_by("t-signed", 9)]
    name = f"gap:31337:{account.address.hex()}:9"
    await client.appears(name)
    assert (await client.transfer(name))["supersedes"] == "t-signed"
    assert "t-signed" not in bench.suite.signer.voided


# -- A broken chain


async def test_nothing_is_accepted_or_signed_on_a_broken_chain(client: Client, bench: Bench) -> None:
    held = bench.suite.txbuilder.script.hold("BuildTransaction")
    transfer_id = (await client.post(plain())).json()["id"]
    await asyncio.wait_for(held.wait(), DEADLINE_S)
    bench.suite.broadcaster.broken_chains = {CHAIN_ID: "Block 5 is not what was final."}
    async with asyncio.timeout(DEADLINE_S):
        while (response := await client.post(plain())).status_code == 202:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert (response.status_code, response.json()["reason"]) == (409, "CHAIN_BROKEN")
    status = (await client.http.get("/v1/status")).json()
    assert status["can_sign"] is False
    assert status["missing"] == [f"{CHAIN_ID} is broken: Block 5 is not what was final."]
    bench.suite.txbuilder.script.release()
    await client.until_idle()
    assert bench.suite.signer.signed == {}
    bench.suite.broadcaster.broken_chains = {}
    assert (await client.until(transfer_id, "SUBMITTED"))["failure"] is None


# -- A chain whose clock is behind


async def test_what_waits_for_a_chain_whose_clock_is_behind_says_so(client: Client, bench: Bench) -> None:
    transfer_id = await submitted(client)
    bench.suite.broadcaster.chains_behind = {CHAIN_ID: 3_600}
    await until_stall(client, transfer_id, "CHAIN_CLOCK")
    status = (await client.http.get("/v1/status")).json()
    assert status["missing"] == [f"{CHAIN_ID}: its clock is 3600 s behind; nothing is sent until it is right."]
    assert status["services"]["broadcaster"]["details"]["chain_clocks"] == [{"chain_id": CHAIN_ID, "behind_s": 3_600}]
    # It is signed, and waits there: nothing else is missing.
    assert status["can_sign"] is True
    bench.suite.broadcaster.chains_behind = {}
    await until_stall(client, transfer_id, None)


async def until_stall(client: Client, transfer_id: str, stall: str | None) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while (await client.transfer(transfer_id))["stall"] != stall:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
