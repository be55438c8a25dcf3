"""Each test of this package runs twice: against the fakes, and against the services themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.fakes.broadcaster import FINALIZED, INCLUDED, SAFE
from tests.fakes.suite import FakeSuite
from tests.fakes.txbuilder import BALANCE_WEI
from tests.integration.contracts.peers import Peers, calling, nothing
from tools.demo.chain import DevelopmentChain
from tools.stack.services import SERVICE_NAMES
from tools.stack.stack import Stack


@pytest.fixture(params=["fake", "real"])
async def peers(request: pytest.FixtureRequest, dev_ca: Callable[[str], Path]) -> AsyncIterator[Peers]:
    if request.param == "real":
        stack: Stack = request.getfixturevalue("whole_stack")
        assert stack.foundation.chain_url is not None
        chain = DevelopmentChain(stack.foundation.chain_url)

        async def fund(address: bytes) -> None:
            await asyncio.to_thread(chain.call, "anvil_setBalance", f"0x{address.hex()}", hex(BALANCE_WEI))

        addresses = {name: stack.foundation.addresses[name] for name in SERVICE_NAMES if name != "gateway"}
        async with calling(addresses, lambda name: stack.foundation.tls / name, fund, nothing) as real:
            yield real
        return
    async with FakeSuite().serve(dev_ca) as fakes:

        async def finalize(transfer_id: str) -> None:
            fakes.broadcaster.move(transfer_id, INCLUDED, SAFE, FINALIZED)

        async with calling(fakes.addresses, dev_ca, nothing, finalize) as faked:
            yield faked
