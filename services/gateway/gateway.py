"""The parts of a running gateway, wired."""

from __future__ import annotations

import asyncio

from services.gateway.acceptance import Acceptance
from services.gateway.changes import Changes
from services.gateway.dispatcher import Dispatcher
from services.gateway.follower import Follower
from services.gateway.identifier import IdentifierSource
from services.gateway.peers import Peers
from services.gateway.personal import PersonalVault
from services.gateway.saga import Saga
from services.gateway.store import Store


class Gateway:
    def __init__(self, store: Store, peers: Peers, vault: PersonalVault) -> None:
        self.store = store
        self.peers = peers
        self.changes = Changes()
        self.identifiers = IdentifierSource()
        self.dispatcher = Dispatcher(store, Saga(store, peers, vault, self.changes))
        self.acceptance = Acceptance(store, peers, vault, self.identifiers, self.dispatcher.wake)
        self._follower = Follower(store, peers, self.changes, self.dispatcher.owner)

    async def run(self) -> None:
        """Saga and follower, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.dispatcher.run())
            group.create_task(self._follower.run())
