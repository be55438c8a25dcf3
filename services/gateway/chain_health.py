"""Chains whose nodes contradict a final block, or whose clocks are behind: known within a second, so that asking costs
a transfer nothing."""

from __future__ import annotations

import asyncio
import logging

from protos.wallet.v1 import broadcaster_pb2
from services.core.errors import Reason, WalletError
from services.gateway.peers import Peers
from services.gateway.telemetry import unsampled
from services.gateway.transfer import State

_log = logging.getLogger(__name__)

# What a transfer waits for, as `stall` says it.
CHAIN_CLOCK = "CHAIN_CLOCK"
_LOOK_S = 0.9
_TIMEOUT_S = 2.0
_WAITING = frozenset({State.SIGNED, State.SUBMITTED})


class ChainHealth:
    """What broadcaster said last. While it does not answer nothing is submitted, so that stays good enough."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._broken: dict[str, str] = {}
        self._held: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Until cancelled."""
        request = broadcaster_pb2.GetBroadcasterStatusRequest()
        while True:
            try:
                with unsampled():
                    reply = await self._peers.broadcaster.GetBroadcasterStatus(request, timeout=_TIMEOUT_S)
                self._note({chain.chain_id: chain.cause for chain in reply.broken_chains})
                self._held = frozenset(clock.chain_id for clock in reply.chain_clocks if clock.holds)
            except WalletError as error:
                _log.debug("broadcaster does not tell its status: %s", error)
            await asyncio.sleep(_LOOK_S)

    @property
    def broken_chains(self) -> frozenset[str]:
        return frozenset(self._broken)

    def broken(self, chain_id: str) -> WalletError | None:
        """CHAIN_BROKEN, where it is."""
        cause = self._broken.get(chain_id)
        if cause is None:
            return None
        return WalletError(
            Reason.CHAIN_BROKEN, Reason.CHAIN_BROKEN.meaning, field="chain_id", rule="is of a chain that is whole"
        )

    def stall(self, chain_id: str, state: State) -> str | None:
        """What every transfer in this state waits for on this chain, if there is such a thing."""
        return CHAIN_CLOCK if chain_id in self._held and state in _WAITING else None

    def _note(self, broken: dict[str, str]) -> None:
        for chain_id in broken.keys() - self._broken.keys():
            _log.critical("chain is broken", extra={"chain_id": chain_id, "cause": broken[chain_id]})
        self._broken = broken
