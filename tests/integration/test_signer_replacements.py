"""Fee bumps and superseding, over a real database: one nonce, one transfer, at most one in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from unittest import mock

import pytest

from protos.wallet.v1 import signer_pb2
from services.core.entries import Kind, check_body
from services.core.errors import Reason, WalletError
from services.core.grammar import LinkHead, State, advance
from services.core.transactions import decode_raw, signing_digest
from services.runtime.telemetry import new_traceparent
from services.signer.policy_store import PolicyRow, PolicyStore
from services.signer.replacement_store import ReplacementStore
from services.signer.store import NonceKey, Registration
from tests.integration.signer_harness import BURN, CHAIN, RECEIVER, Harness, Log
from tools.stack.processes import StackError

GWEI = 10**9


async def refusal(call: Awaitable[object]) -> WalletError:
    with pytest.raises(WalletError) as refused:
        await call
    return refused.value


async def reason(call: Awaitable[object]) -> Reason:
    return (await refusal(call)).reason


def state(log: Log, link_id: str) -> State:
    """Where the link stands by the log's own rules, which refuse what they do not allow."""
    head: LinkHead | None = None
    for entry in log.link(link_id):
        kind = Kind(entry.request.kind)
        check_body(kind, entry.body)
        head = advance(head, kind, entry.body, datetime.now(UTC), trace_id=entry.request.trace_id)
        head = head.with_leaf_hash(entry.reply.leaf_hash)
    assert head is not None
    return head.state


# Fee bumps


async def test_a_bump_is_the_same_link_with_an_intent_and_a_signature_of_its_own(
    replicas: tuple[Harness, Harness],
) -> None:
    one, other = replicas
    first, bump = one.request("t-1", 0), one.request("t-1", 0, fee_wei=2 * GWEI)
    bump.traceparent = first.traceparent
    signed = await one.sign(first)
    bumped = await other.sign(bump)
    assert bumped.raw_tx != signed.raw_tx
    assert decode_raw(bumped.raw_tx)[0].nonce == 0
    assert one.log.kinds("t-1") == ["intent", "signature"] * 2
    intent = one.log.link("t-1")[2]
    assert intent.request.entry_id == f"intent:{signing_digest(bump.unsigned_tx).hex()}"
    assert intent.body["policy"]["decision"] == "allow"
    assert intent.body["policy"]["rules"] == ["replacement: the transaction that is signed, at a higher fee"]
    assert state(one.log, "t-1") is State.SIGNED
    # Each of them is answered again, by any replica, from what is stored.
    asked = len(one.asked())
    assert await one.sign(bump) == bumped
    assert await other.sign(first) == signed
    assert len(one.asked()) == asked
    third = one.request("t-1", 0, fee_wei=3 * GWEI)
    third.traceparent = first.traceparent
    await one.sign(third)
    assert one.log.kinds("t-1") == ["intent", "signature"] * 3


async def test_a_bump_changes_nothing_but_the_fee_and_pays_more(signer: Harness) -> None:
    first = signer.request("t-1", 0, fee_wei=2 * GWEI)
    await signer.sign(first)
    for other in (
        signer.request("t-1", 0, value_wei=2, fee_wei=3 * GWEI),
        signer.request("t-1", 0, to=BURN, fee_wei=3 * GWEI),
        signer.request("t-1", 0, data=b"\x01", fee_wei=3 * GWEI),
        signer.request("t-1", 1, fee_wei=3 * GWEI),
    ):
        assert await reason(signer.sign(other)) is Reason.ALREADY_EXISTS
    assert await reason(signer.sign(signer.request("t-1", 0, fee_wei=GWEI))) is Reason.INVALID_REQUEST
    assert signer.log.kinds("t-1") == ["intent", "signature"]
    assert len(signer.asked()) == 1


async def test_a_bump_waits_for_the_last_signature(signer: Harness) -> None:
    first, bump = signer.request("t-1", 0), signer.request("t-1", 0, fee_wei=2 * GWEI)
    signer.log.fail_before.add(1)
    await refusal(signer.sign(first))
    assert await reason(signer.sign(bump)) is Reason.ALREADY_EXISTS
    await signer.sign(first)
    bump.traceparent = first.traceparent
    await signer.sign(bump)


@pytest.mark.parametrize("when", ["fail_before", "fail_after"])
@pytest.mark.parametrize("call", [3, 4])
async def test_a_crash_in_a_bump_is_gone_on_from(signer: Harness, when: str, call: int) -> None:
    first, bump = signer.request("t-1", 0), signer.request("t-1", 0, fee_wei=2 * GWEI)
    bump.traceparent = first.traceparent
    await signer.sign(first)
    getattr(signer.log, when).add(call)
    assert await reason(signer.sign(bump)) is Reason.EVIDENCE_UNAVAILABLE
    bumped = await signer.sign(bump)
    assert signer.log.kinds("t-1") == ["intent", "signature"] * 2
    assert signer.log.link("t-1")[3].body["raw_tx"] == "0x" + bumped.raw_tx.hex()
    assert len(signer.asked()) == 2


async def test_replicas_that_bump_at_once_bump_once(replicas: tuple[Harness, Harness]) -> None:
    first = replicas[0].request("t-1", 0)
    await replicas[0].sign(first)
    bumps = [replicas[0].request("t-1", 0, fee_wei=fee * GWEI) for fee in (2, 3, 4, 5)]
    for bump in bumps:
        bump.traceparent = first.traceparent
    outcomes = await asyncio.gather(
        *(replicas[place % 2].sign(bump) for place, bump in enumerate(bumps)), return_exceptions=True
    )
    assert any(not isinstance(one, WalletError) for one in outcomes)
    # Whichever came through, the link's log is one that verifies: an intent, its signature, the next.
    assert state(replicas[0].log, "t-1") is State.SIGNED
    same = replicas[0].request("t-1", 0, fee_wei=9 * GWEI)
    same.traceparent = first.traceparent
    answers = await asyncio.gather(*(replica.sign(same) for replica in replicas for _ in range(2)))
    assert len({answer.raw_tx for answer in answers}) == 1


async def test_a_failed_token_is_on_the_record_of_its_own_transaction(signer: Harness) -> None:
    first, bump = signer.request("t-1", 0), signer.request("t-1", 0, fee_wei=2 * GWEI)
    bump.traceparent = first.traceparent
    await signer.sign(first)
    signer.fault("die", bump)
    assert await reason(signer.sign(bump)) is Reason.TOKEN_UNAVAILABLE
    (signer.faults / "die").unlink()
    await signer.sign(bump)
    assert [one.body.get("status") for one in signer.log.link("t-1")] == [None, "success", None, "failed", "success"]
    assert state(signer.log, "t-1") is State.SIGNED


# Superseding


async def test_a_superseding_link_spends_the_nonce_and_says_whose_it_was(replicas: tuple[Harness, Harness]) -> None:
    one, other = replicas
    first = one.request("t-1", 0)
    signed = await one.sign(first)
    request = one.superseding("t-1:cancel", 0, "t-1")
    cancelled = await one.sign(request)
    tx = decode_raw(cancelled.raw_tx)[0]
    assert (tx.nonce, tx.to, tx.value_wei, tx.data) == (0, one.sender, 0, b"")
    intent = one.log.link("t-1:cancel")[0]
    assert intent.body["supersedes"] == "t-1"
    assert state(one.log, "t-1:cancel") is State.SIGNED
    # The superseded link keeps what it has and gets nothing more.
    assert await other.sign(first) == signed
    bump = one.request("t-1", 0, fee_wei=3 * GWEI)
    assert await reason(other.sign(bump)) is Reason.SUPERSEDED
    assert await reason(one.void("t-1")) is Reason.ALREADY_SIGNED
    # The superseding one is answered again, and bumped.
    assert await other.sign(request) == cancelled
    higher = one.superseding("t-1:cancel", 0, "t-1", fee_wei=3 * GWEI)
    higher.traceparent = request.traceparent
    await other.sign(higher)
    assert [entry.body.get("supersedes") for entry in one.log.link("t-1:cancel")] == ["t-1", None, "t-1", None]


async def test_an_unsigned_link_that_is_superseded_is_never_signed_and_gives_nothing_back(signer: Harness) -> None:
    first = signer.request("t-1", 0)
    signer.log.fail_before.add(1)
    await refusal(signer.sign(first))
    await signer.sign(signer.superseding("t-1:cancel", 0, "t-1"))
    assert await reason(signer.sign(first)) is Reason.SUPERSEDED
    # The promise holds already; the nonce is not free for it.
    await signer.void("t-1")
    assert await reason(signer.sign(first)) is Reason.SUPERSEDED
    assert await reason(signer.sign(signer.request("t-2", 0))) is Reason.NONCE_REGISTERED
    assert signer.log.link("t-1") == []


async def test_superseding_that_overtakes_a_running_call_discards_its_signature(signer: Harness) -> None:
    async def supersede(number: int) -> None:
        if number == 1:
            await signer.sign(signer.superseding("t-1:cancel", 0, "t-1"))

    signer.log.before_append = supersede
    request = signer.request("t-1", 0)
    assert await reason(signer.sign(request)) is Reason.SUPERSEDED
    assert signer.log.kinds("t-1") == ["intent"]
    assert signer.log.kinds("t-1:cancel") == ["intent", "signature"]


async def test_sign_bump_and_supersede_at_once(replicas: tuple[Harness, Harness]) -> None:
    one, other = replicas
    for nonce in range(12):
        link = f"t-{nonce}"
        first = one.request(link, nonce)
        bump = one.request(link, nonce, fee_wei=2 * GWEI)
        bump.traceparent = first.traceparent
        if nonce % 2:
            await one.sign(first)
        calls = [
            one.sign(first),
            other.sign(bump),
            one.sign(one.superseding(f"{link}:cancel", nonce, link)),
            other.sign(one.superseding(f"gap:{nonce}", nonce, link)),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, WalletError) or outcome.raw_tx for outcome in outcomes)  # type: ignore[union-attr]
        superseding = [
            link_id for link_id in (f"{link}:cancel", f"gap:{nonce}") if "signature" in one.log.kinds(link_id)
        ]
        assert len(superseding) <= 1
        # From here on the transfer is signed no more where it was superseded.
        again = one.request(link, nonce, fee_wei=9 * GWEI)
        again.traceparent = first.traceparent
        refused = await asyncio.gather(one.sign(again), return_exceptions=True)
        if superseding:
            assert isinstance(refused[0], WalletError)
            before = one.log.kinds(link)
            for request in (first, bump):
                await asyncio.gather(other.sign(request), return_exceptions=True)
            assert one.log.kinds(link) == before
    held = one.server.execute(
        "SELECT count(*) FROM signer.register WHERE voided_at IS NULL AND attempt = 1 "
        "GROUP BY nonce HAVING count(*) > 2 OR count(*) FILTER (WHERE supersedes IS NULL) <> 1"
    )
    assert held.strip() == ""


async def test_a_bump_that_was_decided_before_the_link_was_superseded_is_not_entered(signer: Harness) -> None:
    first, bump = signer.request("t-1", 0), signer.request("t-1", 0, fee_wei=2 * GWEI)
    await signer.sign(first)
    registration = Registration(
        "t-1", NonceKey(CHAIN, signer.sender, 0), bump.unsigned_tx, policy_version=1, intent_body=b"{}", attempt=2
    )
    await signer.sign(signer.superseding("t-1:cancel", 0, "t-1"))
    assert await ReplacementStore(signer.database).enter_bumps([registration]) == set()
    # The other way round, superseding waits for a bump that is being entered, and marks it with the rest.
    await signer.sign(signer.request("t-2", 1))
    entered = await asyncio.gather(
        ReplacementStore(signer.database).enter_bumps(
            [registration._replace(link_id="t-2", key=NonceKey(CHAIN, signer.sender, 1))]
        ),
        signer.sign(signer.superseding("t-2:cancel", 1, "t-2")),
    )
    marked = signer.server.execute("SELECT count(*), count(superseded_by) FROM signer.register WHERE link_id = 't-2'")
    assert marked == ("2|2" if entered[0] else "1|1")


async def test_who_supersedes_moves_nothing(signer: Harness) -> None:
    await signer.sign(signer.request("t-1", 0))
    for wrong in (
        signer.request("t-1:cancel", 0, signer.sender, 1, fee_wei=2 * GWEI, supersedes="t-1"),
        signer.request("t-1:cancel", 0, RECEIVER, 0, fee_wei=2 * GWEI, supersedes="t-1"),
        signer.request("t-1:cancel", 0, None, 0, fee_wei=2 * GWEI, supersedes="t-1"),
        signer.request("t-1:cancel", 0, signer.sender, 0, b"\x01", fee_wei=2 * GWEI, supersedes="t-1"),
    ):
        assert await reason(signer.sign(wrong)) is Reason.INVALID_REQUEST


async def test_it_names_the_link_that_has_the_nonce(signer: Harness) -> None:
    await signer.sign_all(signer.request("t-1", 1), signer.request("t-2", 2))
    await signer.void("t-3")
    for supersedes, nonce in (("t-2", 1), ("", 1), ("t-3", 3), ("t-9", 9)):
        refused = await refusal(signer.sign(signer.superseding("x:cancel", nonce, supersedes)))
        assert (refused.reason, refused.details["field"]) == (Reason.NONCE_REGISTERED, "supersedes")
    # One of a superseding link is not superseded, and a link supersedes one.
    await signer.sign(signer.superseding("gap:5", 5, ""))
    assert await reason(signer.sign(signer.superseding("gap:5:cancel", 5, "gap:5"))) is Reason.INVALID_REQUEST
    await signer.sign(signer.superseding("t-1:cancel", 1, "t-1"))
    assert await reason(signer.sign(signer.superseding("t-1:cancel", 2, "t-2"))) is Reason.ALREADY_EXISTS
    assert await reason(signer.sign(signer.superseding("other", 1, "t-1"))) is Reason.NONCE_REGISTERED


async def test_a_nonce_that_was_given_back_is_filled_once(signer: Harness) -> None:
    await signer.void("t-1")
    filled = await signer.sign(signer.superseding("gap:0", 0, ""))
    assert signer.log.link("gap:0")[0].body["supersedes"] is None
    assert filled == await signer.sign(signer.superseding("gap:0", 0, ""))
    assert await reason(signer.sign(signer.superseding("gap:0:2", 0, ""))) is Reason.NONCE_REGISTERED
    assert await reason(signer.sign(signer.request("t-2", 0))) is Reason.NONCE_REGISTERED


def marks(signer: Harness) -> str:
    mark = "link_id || '/' || attempt || ' ' || coalesce(superseded_by, '-')"
    return signer.server.execute(
        f"SELECT string_agg({mark}, ', ' ORDER BY link_id, attempt) FROM signer.register"
    ).strip()


async def test_a_superseding_link_that_was_voided_gives_the_mark_back(replicas: tuple[Harness, Harness]) -> None:
    signer, other = replicas
    first, bump = signer.request("t-1", 0), signer.request("t-1", 0, fee_wei=2 * GWEI)
    bump.traceparent = first.traceparent
    await signer.sign(first)
    signer.log.fail_before |= {3, 4}
    await refusal(signer.sign(bump))
    await refusal(signer.sign(signer.superseding("t-1:cancel", 0, "t-1", 3 * GWEI)))
    assert await reason(signer.sign(bump)) is Reason.SUPERSEDED
    await asyncio.gather(signer.void("t-1:cancel"), other.void("t-1:cancel"))
    assert marks(signer) == "t-1/1 -, t-1/2 -, t-1:cancel/1 -"
    # The bump goes on where it was stopped, and another link may take the nonce.
    await other.sign(bump)
    assert await reason(signer.sign(signer.superseding("t-1:cancel", 0, "t-1"))) is Reason.LINK_VOIDED
    await signer.sign(signer.superseding("t-1:cancel.1", 0, "t-1", 3 * GWEI))
    assert marks(signer) == "t-1/1 t-1:cancel.1, t-1/2 t-1:cancel.1, t-1:cancel/1 -, t-1:cancel.1/1 -"
    # That one is signed: nothing is given back, and a void of the first changes nothing.
    assert await reason(signer.void("t-1:cancel.1")) is Reason.ALREADY_SIGNED
    await signer.void("t-1:cancel")
    assert await reason(other.sign(signer.request("t-1", 0, fee_wei=9 * GWEI))) is Reason.SUPERSEDED


async def test_what_was_superseded_unsigned_stays_unsigned(signer: Harness) -> None:
    """Its signing was refused, so its nonce may be another's by now."""
    first = signer.request("t-1", 0)
    signer.log.fail_before |= {1, 2}
    await refusal(signer.sign(first))
    await refusal(signer.sign(signer.superseding("t-1:cancel", 0, "t-1")))
    await signer.void("t-1")
    await signer.void("t-1:cancel")
    assert await reason(signer.sign(first)) is Reason.LINK_VOIDED
    await signer.sign(signer.request("t-2", 0))


async def test_voiding_and_superseding_at_once_leave_no_mark_of_a_voided_link(
    replicas: tuple[Harness, Harness],
) -> None:
    one, other = replicas
    for nonce in range(10):
        link = f"t-{nonce}"
        await one.sign(one.request(link, nonce))
        calls = [
            one.sign(one.superseding(f"{link}:cancel", nonce, link)),
            other.void(f"{link}:cancel"),
            other.sign(one.superseding(f"{link}:cancel.1", nonce, link)),
            one.void(f"{link}:cancel"),
        ]
        await asyncio.gather(*calls, return_exceptions=True)
        left = one.server.execute(
            "SELECT count(*) FROM signer.register r JOIN signer.register s ON s.link_id = r.superseded_by "
            "WHERE s.voided_at IS NOT NULL"
        )
        assert left.strip() == "0"
        marked = one.server.execute(f"SELECT superseded_by FROM signer.register WHERE link_id = '{link}'").strip()
        live = "SELECT link_id FROM signer.register WHERE voided_at IS NULL AND supersedes"
        assert marked == one.server.execute(f"{live} = '{link}'").strip()


# What a policy that came in between says


async def put_in_force(signer: Harness, version: int, fee_wei: int) -> None:
    document = (await signer.api.GetPolicy(signer_pb2.GetPolicyRequest(), None)).document.decode()
    lines = [line for line in document.splitlines() if "fee_wei" not in line and not line.startswith("version:")]
    place = lines.index("  limits:") + 1
    changed = "\n".join([f"version: {version}", *lines[:place], f"    fee_wei: '{fee_wei}'", *lines[place:]])
    row = PolicyRow(version, sha256(changed.encode()).digest(), changed.encode(), new_traceparent(), b"{}")
    await PolicyStore(signer.database).supersede(row, version - 1)


@pytest.mark.parametrize("what", ["bump", "superseding"])
async def test_a_bump_or_superseding_link_is_judged_by_the_policy_in_force(signer: Harness, what: str) -> None:
    """It was judged by the first version; the second is put in force before it is entered."""
    first = signer.request("t-1", 0)
    await signer.sign(first)
    request = (
        signer.request("t-1", 0, fee_wei=2 * GWEI) if what == "bump" else signer.superseding("t-1:cancel", 0, "t-1")
    )
    request.traceparent = first.traceparent
    method = "enter_bumps" if what == "bump" else "supersede"
    entering = getattr(ReplacementStore, method)

    async def overtaken(self: ReplacementStore, argument: Any) -> Any:
        if (await PolicyStore(signer.database).version()) == 1:
            await put_in_force(signer, 2, fee_wei=21_000 * GWEI)
        return await entering(self, argument)

    with mock.patch.object(ReplacementStore, method, overtaken):
        assert await reason(signer.sign(request)) is Reason.FEE_CAP_REACHED
    assert signer.server.execute("SELECT count(*) FROM signer.register").strip() == "1"
    # Under a third that allows it, it is entered as decided by that one.
    await put_in_force(signer, 3, fee_wei=10**18)
    await signer.api._policy_versions.refresh()
    await signer.sign(request)
    in_order = "string_agg(policy_version::text, ',' ORDER BY policy_version)"
    versions = signer.server.execute(f"SELECT {in_order} FROM signer.register")
    assert versions.strip() == "1,3"


# What the database itself refuses


UNDOING = (
    "UPDATE signer.register SET signature_body = NULL WHERE link_id = 't-1'",
    "UPDATE signer.register SET signature_body = 'x' WHERE link_id = 't-1'",
    "UPDATE signer.register SET intent_index = 9 WHERE link_id = 't-1'",
    "UPDATE signer.register SET voided_at = NULL, void_cause = NULL WHERE link_id = 't-2'",
    "UPDATE signer.register SET superseded_by = NULL WHERE link_id = 't-1'",
    "UPDATE signer.register SET voided_at = now() WHERE link_id = 't-3'",
    "UPDATE signer.register SET intent_index = 1, intent_body = NULL, signature_body = 'x' WHERE link_id = 't-3'",
    "DELETE FROM signer.register",
    "DELETE FROM signer.denials",
    "DELETE FROM signer.policy_versions",
    "TRUNCATE signer.register",
)


async def test_what_is_stored_is_not_undone_even_by_the_owner(signer: Harness) -> None:
    await signer.sign(signer.request("t-1", 0))
    await signer.void("t-2")
    await signer.sign(signer.superseding("t-1:cancel", 0, "t-1"))
    signer.log.fail_before.add(signer.log.calls + 1)
    await refusal(signer.sign(signer.request("t-3", 3)))
    await signer.sign(signer.superseding("t-3:cancel", 3, "t-3"))
    before = signer.server.execute("SELECT * FROM signer.register ORDER BY link_id")
    for statement in UNDOING:
        with pytest.raises(StackError):
            signer.server.execute(statement)
    assert signer.server.execute("SELECT * FROM signer.register ORDER BY link_id") == before
