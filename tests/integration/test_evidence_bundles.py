"""Links that the log accepted, proven by the stand-alone verifier, which shares no code with it."""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from protos.wallet.v1 import evidence_pb2 as pb
from services.core.errors import Reason, WalletError
from tests.integration.running_evidence import RunningLog, entry
from tests.unit.verify import forge
from tools.verify import verify_bundle

VECTORS = Path(__file__).parent.parent / "vectors" / "bundles"


@pytest.fixture
def log(service_database: Callable[[str], Any], dev_ca: Callable[[str], Path], tmp_path: Path) -> RunningLog:
    return RunningLog(service_database("evidence").settings, dev_ca, tmp_path)


async def append_draft(log: RunningLog, link_id: str, number: int, draft: forge.Draft) -> pb.AppendedEntry:
    """A forged entry at its own time; trace ids as forge has them."""
    log.clock = lambda: forge.START + timedelta(seconds=draft.at)
    body = rfc8785.dumps(draft.body)
    return await log.client.append(entry(link_id, f"e:{number}", body, draft.kind, forge.TRACE_ID))


async def test_recorded_links_of_a_real_chain_go_through_the_log_and_verify(log: RunningLog) -> None:
    """All vectors in one log, interleaved by their times, as concurrent transfers are."""
    recorded: list[tuple[str, str, dict[str, Any], bytes]] = []
    nodes = {}
    for path in sorted(VECTORS.glob("*/bundle.json")):
        bundle = json.loads(path.read_text())
        nodes[path.parent.name] = json.loads((path.parent / "trust.json").read_text())
        for one in bundle["entries"]:
            leaf = json.loads(base64.b64decode(one["leaf"]))
            recorded.append((leaf["at"], path.parent.name, leaf, base64.b64decode(one["body"])))
    recorded.sort(key=lambda one: (one[0], one[1], one[2]["step"]))
    assert len(nodes) >= 6
    log = replace(log, nodes_required=min(one["min_agreeing_nodes"] for one in nodes.values()))
    async with log.running():
        for number, (at, name, leaf, body) in enumerate(recorded):
            log.clock = lambda at=at: datetime.fromisoformat(at)
            reply = await log.client.append(
                entry(f"vector:{name}", f"e:{leaf['step']}", body, leaf["kind"], leaf["trace_id"])
            )
            assert (reply.index, reply.step) == (number, leaf["step"])
        for name, trusted in nodes.items():
            document = await log.client.bundle(f"vector:{name}")
            trust = json.loads(log.trust) | {
                "chain_ids": trusted["chain_ids"],
                "min_agreeing_nodes": trusted["min_agreeing_nodes"],
            }
            report = verify_bundle(document, json.dumps(trust).encode())
            assert report.accepted, (name, report.checks)


async def test_a_bundle_waits_for_a_checkpoint_that_covers_its_link(log: RunningLog) -> None:
    log.interval_s = 0.5
    async with log.running():
        for number, draft in enumerate(forge.plain_link()):
            await append_draft(log, "transfer-1", number, draft)
        covered = (await log.client.checkpoint()).tree_size
        if covered < 7:
            with pytest.raises(WalletError) as refused:
                await log.client.bundle("transfer-1", wait_ms=0)
            assert refused.value.reason is Reason.EVIDENCE_UNAVAILABLE
        document = await log.client.bundle("transfer-1")
        assert verify_bundle(document, log.trust).accepted
        assert set(json.loads(document)) == {"format", "link_id", "trace_id", "entries", "checkpoint", "anchor"}
        # The log goes on: the proof is another, the link the same.
        await log.client.append_all(*(entry(f"key:{number}") for number in range(1_000)))
        await log.client.until(lambda status: status.checkpoint_size == 1_007)
        later = await log.client.bundle("transfer-1", wait_ms=0)
        assert verify_bundle(later, log.trust).accepted
        assert [one["leaf"] for one in json.loads(later)["entries"]] == [
            one["leaf"] for one in json.loads(document)["entries"]
        ]
        with pytest.raises(WalletError) as closed:
            await append_draft(log, "transfer-1", 7, forge.no_answer(9))
        assert closed.value.reason is Reason.LINK_CLOSED


class RandomLink:
    """Proposes entries, sensible and not; remembers what was signed and mined."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._at = 0.0
        self._type = chance.choice([0, 1, 2])
        self._tx = self._proposed = forge.Tx(tx_type=self._type)
        self._signed: list[forge.Draft] = []
        self._mined: forge.Draft | None = None

    def _skewed(self) -> float:
        return self._at + self._chance.choice([0, 0, 0, 0, -7, -3, 3, 7])

    def propose(self, step: int) -> forge.Draft:
        self._at += self._chance.choice([0, 0.1, 1])
        kinds = ["intent", "signature", "failed", "request", "request", "response", "response", "error", "silence"]
        kind = self._chance.choice([*kinds, "inclusion", "inclusion", "inclusion", "revocation"])
        if step < 4 and self._chance.random() < 0.8:
            kind = ("intent", "signature", "request", "response")[step]
        draft = self._draft(kind)
        draft.at = self._at
        return draft

    def _draft(self, kind: str) -> forge.Draft:
        signed = self._chance.choice(self._signed) if self._signed else forge.signature(self._tx)
        attempt, node = self._chance.choice([1, 1, 2, 3]), self._chance.choice(["node-a", "node-a", "node-b"])
        if kind == "intent":
            if self._signed:
                self._proposed = forge.Tx(tx_type=self._type, fee=self._chance.randrange(3, 9) * 10**9)
            return forge.intent(self._proposed, self._skewed(), self._chance.choice(["allow"] * 9 + ["deny"]))
        if kind == "signature":
            return forge.signature(self._tx)
        if kind == "failed":
            return forge.failed_signature()
        if kind == "request":
            return forge.request(signed, self._skewed(), attempt, node)
        if kind == "response":
            return forge.response(signed, self._skewed(), attempt, node)
        if kind == "error":
            return forge.error_response(signed, self._skewed(), attempt, node)
        if kind == "silence":
            return forge.no_answer(self._skewed(), attempt, node)
        if kind == "revocation" and self._mined is not None:
            return forge.revocation(self._mined, 0)
        seconds = int(forge.START.timestamp() + self._at) + self._chance.choice([-20, 0, 0, 0])
        block = forge.Block(forge.raw_tx(signed), number=self._chance.choice([77, 77, 77, 78]), timestamp=seconds)
        if self._mined is not None and self._chance.random() < 0.8:
            status = self._chance.choice(["safe", "finalized"])
            body = self._mined.body | {"status": status, "agreeing_nodes": ["node-a", "node-b"]}
            return forge.Draft("inclusion", 0, body)
        nodes = self._chance.choice([("node-a",), ("node-a", "node-b")])
        return block.inclusion(self._chance.choice(["included", "included", "safe", "finalized"]), 0, nodes)

    def accepted(self, draft: forge.Draft) -> None:
        if draft.kind == "intent":
            # Only what was entered is signed: whose transaction a signature is of, the log leaves to the signer.
            self._tx = self._proposed
        elif draft.kind == "signature" and draft.body["status"] == "success":
            self._signed.append(draft)
        elif draft.kind == "inclusion":
            self._mined = draft


async def test_whatever_the_log_accepts_verifies(log: RunningLog) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    refusals: Counter[str] = Counter()
    states: Counter[str] = Counter()
    async with log.running():
        links = [RandomLink(chance) for _ in range(60)]
        for link_number, link in enumerate(links):
            for step in range(16):
                draft = link.propose(step)
                try:
                    await append_draft(log, f"random:{link_number}", step, draft)
                    link.accepted(draft)
                except WalletError as error:
                    refusals[error.reason.name] += 1
            # The log's clock does not run backwards: the next link begins where this one ended.
            for later in links[link_number + 1 : link_number + 2]:
                later._at = link._at
        for link_number in range(len(links)):
            try:
                link = await log.client.stub.GetLink(pb.GetLinkRequest(link_id=f"random:{link_number}"))
            except WalletError as error:
                if error.reason is Reason.NOT_FOUND:  # nothing of it was accepted
                    continue
                raise
            states[link.state] += 1
            document = await log.client.bundle(f"random:{link_number}")
            report = verify_bundle(document, log.trust, link.state)
            assert report.accepted, (seed, link_number, link.state, [c for c in report.checks if not c.ok])
            assert report.state == link.state, seed
    # The proposals reach every corner, or this test proves little.
    assert {"OUT_OF_ORDER", "CLOCK_SKEW", "INVALID_REQUEST"} <= refusals.keys(), (seed, refusals)
    assert len(states) >= 4, (seed, states)
