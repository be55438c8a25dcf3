"""A gateway killed with SIGKILL between a peer's work and its own commit, and another that goes on from the rows."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from protos.wallet.v1 import signer_pb2
from services.core.errors import Reason, WalletError
from services.gateway import follower
from services.gateway.credentials import Role
from tests.fakes.broadcaster import FINALIZED, INCLUDED, NOT_MINED, SAFE
from tests.fakes.signer import APPROVED_VALUE_WEI
from tests.integration.gateway_harness import Bench, gateway_process, plain


def expire_leases(bench: Bench) -> None:
    """As five seconds would."""
    bench.database.server.execute("UPDATE gateway.workers SET until = now()")


@pytest.mark.parametrize(
    ("peer", "method", "count"),
    [
        ("signer", "CheckPolicy", 1),
        ("txbuilder", "BuildTransaction", 1),
        ("signer", "SignTransaction", 1),
        ("broadcaster", "SubmitTransaction", 1),
        ("signer", "SignTransactions", 3),
    ],
)
async def test_a_killed_gateway_leaves_nothing_lost_and_nothing_twice(
    bench: Bench, peer: str, method: str, count: int
) -> None:
    script = getattr(bench.suite, peer).script
    worked = script.hold(method)
    async with gateway_process(bench) as (client, process):
        if count == 1:
            accepted = [(await client.post(plain(), key="k")).json()]
        else:
            accepted = (await client.post_batch([plain()] * count, key="k")).json()["transfers"]
        # The peer has done its work; the gateway never hears of it.
        await asyncio.wait_for(worked.wait(), 20)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    script.release()
    expire_leases(bench)
    async with bench.gateway() as client:
        if count == 1:
            assert (await client.post(plain(), key="k")).json()["id"] == accepted[0]["id"]
        for transfer in accepted:
            current = await client.until(transfer["id"], "SUBMITTED")
            # The trace that the row names goes on.
            assert current["traceparent"] == transfer["traceparent"]
            assert bench.suite.signer.signed[transfer["id"]].traceparent == transfer["traceparent"]
            bench.suite.broadcaster.move(transfer["id"], INCLUDED, SAFE, FINALIZED)
            await client.until(transfer["id"], "FINALIZED")
    assert len(bench.suite.txbuilder.reserved) == len(bench.suite.signer.signed) == count
    assert {request.raw_tx for request in bench.suite.broadcaster.requests} == {
        built.unsigned_tx + b":signed" for built in bench.suite.txbuilder.reserved.values()
    }
    assert sorted(built.nonce for built in bench.suite.txbuilder.reserved.values()) == list(range(count))


@pytest.mark.parametrize(("peer", "method"), [("signer", "VoidLink"), ("txbuilder", "ReleaseNonce")])
async def test_a_failure_that_was_interrupted_ends_with_its_first_reason(bench: Bench, peer: str, method: str) -> None:
    bench.suite.signer.script.refuse("SignTransaction", WalletError(Reason.KEY_NOT_FOUND, "no such key"))
    script = getattr(bench.suite, peer).script
    worked = script.hold(method)
    async with gateway_process(bench) as (client, process):
        transfer_id = (await client.post(plain())).json()["id"]
        await asyncio.wait_for(worked.wait(), 20)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    script.release()
    expire_leases(bench)
    async with bench.gateway() as client:
        failed = await client.until(transfer_id, "FAILED")
    assert failed["failure"]["reason"] == "KEY_NOT_FOUND"
    assert bench.suite.txbuilder.released == [transfer_id]
    assert bench.suite.signer.signed == {}


@pytest.mark.parametrize(
    ("peer", "method"),
    [("txbuilder", "BumpTransaction"), ("signer", "SignTransaction"), ("broadcaster", "SubmitTransaction")],
)
async def test_a_bump_that_was_interrupted_is_the_same_bump(bench: Bench, peer: str, method: str) -> None:
    script = getattr(bench.suite, peer).script
    async with gateway_process(bench) as (client, process):
        transfer_id = (await client.post(plain())).json()["id"]
        await client.until(transfer_id, "SUBMITTED")
        worked = script.hold(method)
        bench.suite.broadcaster.stall(transfer_id, NOT_MINED)
        await asyncio.wait_for(worked.wait(), 20)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    script.release()
    expire_leases(bench)
    async with bench.gateway() as client:
        await client.when(transfer_id, lambda view: view["replacements"] == 1)
    assert len(bench.suite.txbuilder.bumps[transfer_id]) == len(bench.suite.signer.bumped[transfer_id]) == 1
    assert len({request.raw_tx for request in bench.suite.broadcaster.requests}) == 2


@pytest.mark.parametrize(("peer", "method"), [("signer", "VoidLink"), ("txbuilder", "ReleaseNonce")])
async def test_a_cancellation_that_was_interrupted_is_carried_out(bench: Bench, peer: str, method: str) -> None:
    signer = bench.suite.signer.script
    signer.refuse("SignTransaction", *[WalletError(Reason.TOKEN_UNAVAILABLE, "no token")] * 1_000)
    script = getattr(bench.suite, peer).script
    async with gateway_process(bench) as (client, process):
        transfer_id = (await client.post(plain())).json()["id"]
        await client.until(transfer_id, "BUILT")
        worked = script.hold(method)
        cancelling = asyncio.create_task(client.http.post(f"/v1/transfers/{transfer_id}:cancel"))
        await asyncio.wait_for(worked.wait(), 20)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await asyncio.gather(cancelling, return_exceptions=True)
    script.release()
    expire_leases(bench)
    async with bench.gateway() as client:
        failed = await client.until(transfer_id, "FAILED")
    assert failed["failure"]["reason"] == "TRANSFER_CANCELLED"
    assert bench.suite.signer.signed == {}
    assert bench.suite.txbuilder.released == [transfer_id]


async def test_an_approval_whose_entry_was_interrupted_counts(bench: Bench) -> None:
    bench.suite.signer.approval = signer_pb2.ApprovalRule(count=1, valid_s=3600)
    worked = bench.suite.evidence.script.hold("AppendEntries")
    async with gateway_process(bench) as (client, process):
        transfer_id = (await client.post(plain(str(APPROVED_VALUE_WEI)))).json()["id"]
        waiting = await client.until(transfer_id, "AWAITING_APPROVAL")
        headers = {"Authorization": f"Bearer {await bench.token(Role.APPROVER)}"}
        terms = {"terms_sha256": waiting["terms_sha256"]}
        path = f"/v1/transfers/{transfer_id}:approve"
        approving = asyncio.create_task(client.http.post(path, json=terms, headers=headers))
        await asyncio.wait_for(worked.wait(), 20)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await asyncio.gather(approving, return_exceptions=True)
    bench.suite.evidence.script.release()
    expire_leases(bench)
    async with bench.gateway() as client:
        await client.until(transfer_id, "SUBMITTED")
        # Who never heard the answer gets it now.
        assert (await client.http.post(path, json=terms, headers=headers)).json()["evidence_index"] == 0
    assert len(bench.suite.evidence.appended) == 1


async def test_a_policy_change_that_was_interrupted_is_carried_out(bench: Bench) -> None:
    document = {"document": "version: 4"}
    worked = bench.suite.signer.script.hold("ActivatePolicy")
    tokens = [await bench.token(Role.APPROVER, name=name) for name in ("alice", "bob", "carol")]
    proposer, *approvers = [{"Authorization": f"Bearer {token}"} for token in tokens]
    async with gateway_process(bench) as (client, process):
        name = (await client.http.post("/v1/policies", json=document, headers=proposer)).json()["sha256"]
        path = f"/v1/policies/{name}:approve"
        await client.http.post(path, headers=approvers[0])
        approving = asyncio.create_task(client.http.post(path, headers=approvers[1]))
        await asyncio.wait_for(worked.wait(), 20)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await asyncio.gather(approving, return_exceptions=True)
    bench.suite.signer.script.release()
    expire_leases(bench)
    async with bench.gateway() as client, asyncio.timeout(20):
        while (await client.http.get("/v1/policies")).json()["policies"][0]["state"] != "IN_FORCE":  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_stream_that_is_frozen_is_left_for_another(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "_LONGEST_SILENCE_S", 0.5)
    async with bench.gateway() as client:
        transfer_id = (await client.post(plain())).json()["id"]
        await client.until(transfer_id, "SUBMITTED")
        bench.suite.broadcaster.freeze_streams()
        bench.suite.broadcaster.move(transfer_id, INCLUDED)
        await client.until(transfer_id, "INCLUDED")


async def test_the_cursor_survives_a_broken_stream_and_a_restart(bench: Bench) -> None:
    broadcaster = bench.suite.broadcaster
    async with bench.gateway() as client:
        transfer_id = (await client.post(plain())).json()["id"]
        await client.until(transfer_id, "SUBMITTED")
        broadcaster.break_streams()
        broadcaster.move(transfer_id, INCLUDED)
        await client.until(transfer_id, "INCLUDED")
    broadcaster.move(transfer_id, SAFE, FINALIZED)
    async with bench.gateway() as client:
        await client.until(transfer_id, "FINALIZED")
        states = [event["state"] async for event in client.events(transfer_id)]
    assert states == ["ACCEPTED", "BUILT", "SIGNED", "SUBMITTED", "INCLUDED", "SAFE", "FINALIZED"]
    assert broadcaster.watched_after[0] == 0
    assert broadcaster.watched_after[-1] == 2


async def test_sigterm_ends_with_0_while_a_stream_is_open(bench: Bench) -> None:
    async with gateway_process(bench) as (client, process):
        bench.suite.broadcaster.queue = True
        transfer_id = (await client.post(plain())).json()["id"]
        await client.until(transfer_id, "SIGNED")

        async def read() -> list[Any]:
            return [event async for event in client.events(transfer_id)]

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        await asyncio.gather(reading, return_exceptions=True)
    # Its leases ended with it.
    assert bench.database.server.execute("SELECT count(*) FROM gateway.workers") == "0"
