"""Defects that relayers are known for, by their symptoms, and that this one is not to have.

After a rolling restart, jobs of the old worker are orphaned and a mined transfer stays "submitted" for ever. Here a
lease lives only as long as its worker's heartbeat: whatever becomes of a worker, another goes on within ten seconds.
"""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from tests.fakes.broadcaster import FINALIZED, INCLUDED, NOT_MINED
from tests.integration.gateway_harness import DEADLINE_S, Bench, gateway_process, plain

LONGEST_S = 10.0


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP], ids=lambda end: end.name)
async def test_a_rolling_restart_orphans_nothing(bench: Bench, end: signal.Signals) -> None:
    suite = bench.suite
    async with gateway_process(bench) as (old, process):
        mined, stalled = [(await old.post(plain(value))).json()["id"] for value in ("1", "2")]
        for transfer_id in (mined, stalled):
            await old.until(transfer_id, "SUBMITTED")
        # The old worker follows the chain, has a transfer half signed and a bump half built.
        signing, bumping = suite.signer.script.hold("SignTransaction"), suite.txbuilder.script.hold("BumpTransaction")
        half_signed = (await old.post(plain("3"))).json()["id"]
        suite.broadcaster.stall(stalled, NOT_MINED)
        for held in (signing, bumping):
            await asyncio.wait_for(held.wait(), DEADLINE_S)
        async with gateway_process(bench) as (new, _):
            process.send_signal(end)
            started = time.monotonic()
            for script in (suite.signer.script, suite.txbuilder.script):
                script.release()
            suite.broadcaster.move(mined, INCLUDED, FINALIZED)
            await new.until(mined, "FINALIZED")
            await new.until(half_signed, "SUBMITTED")
            await new.when(stalled, lambda view: view["replacements"] == 1)
            assert time.monotonic() - started < LONGEST_S
            if end is signal.SIGSTOP:
                # It wakes, believes that it still has the work, and can commit none of it.
                process.send_signal(signal.SIGCONT)
                assert (await old.until(half_signed, "SUBMITTED"))["replacements"] == 0
                assert (await old.transfer(stalled))["replacements"] == 1
    assert len(suite.txbuilder.reserved) == len(suite.signer.signed) == 3
    assert len(suite.signer.bumped[stalled]) == 1
    # Three transfers and one bump, whoever sent them.
    assert len({request.raw_tx for request in suite.broadcaster.requests}) == 4
