"""Which transfers are worked on, by whom, when: leases, lanes of an account, and the sweep that finds what was left."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import Iterable

from services.core.errors import WalletError
from services.gateway.asking import retry_delay_s
from services.gateway.leases import Leases
from services.gateway.saga import Saga
from services.gateway.transfer import AccountKey

_log = logging.getLogger(__name__)

GROUP_SIZE = 200
# Two groups of an account at once: one is built while the other is signed and submitted.
_LANES = 2
# Groups of all accounts at once: each wants a database connection now and then, and there are five.
_GROUPS_AT_ONCE = 16
_SWEEP_S = 1.0
_BEAT_S = 1.5
_LEASE_S = 5.0


class Dispatcher:
    """Runs the saga for every due transfer. Groups of one account are built in the order of acceptance."""

    def __init__(self, leases: Leases, saga: Saga) -> None:
        self.owner = secrets.token_hex(8)
        self._leases = leases
        self._saga = saga
        self._due: set[AccountKey] = set()
        self._lanes: defaultdict[AccountKey, int] = defaultdict(int)
        self._turns: dict[AccountKey, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_GROUPS_AT_ONCE)
        self._unreleased: set[str] = set()
        self._stopping = False
        self.beating = False

    @property
    def due_accounts(self) -> int:
        """With work that no lane has taken up."""
        return len(self._due)

    async def run(self) -> None:
        """Until cancelled. Then lanes end, and so do this worker's leases."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beat())
                group.create_task(self._sweep())
        finally:
            await self._stop()

    def wake(self, accounts: Iterable[AccountKey]) -> None:
        for account in accounts:
            self._due.add(account)
            if self._lanes[account] < _LANES and not self._stopping:
                self._lanes[account] += 1
                task = asyncio.get_running_loop().create_task(self._lane(account))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def hurry(self, transfer_id: str) -> None:
        """Work on one transfer now, past the lanes of its account: for what takes no nonce. Raises like `Saga.run`."""
        group = await self._leases.claim_one(self.owner, transfer_id)
        if not group:
            return
        try:
            await self._saga.run(group)
        except BaseException:
            self._unreleased.add(transfer_id)
            raise

    async def _lane(self, account: AccountKey) -> None:
        try:
            while account in self._due and not self._stopping:
                async with self._slots:
                    self._due.discard(account)
                    await self._work(account)
        except WalletError as error:
            # The sweep comes back to it.
            _log.warning("saga interrupted: %s", error)
        except Exception:
            _log.exception("saga interrupted")
        finally:
            self._lanes[account] -= 1
            if self._lanes[account] == 0:
                del self._lanes[account]
                self._turns.pop(account, None)

    async def _work(self, account: AccountKey) -> None:
        turn = self._turns.setdefault(account, asyncio.Lock())
        await turn.acquire()
        built = False

        def end_turn() -> None:
            nonlocal built
            if not built:
                built = True
                turn.release()

        try:
            group = await self._leases.claim(self.owner, account, GROUP_SIZE)
            if not group:
                return
            if len(group) == GROUP_SIZE:
                # More may be due: the next group is claimed once this one is built.
                self.wake([account])
            try:
                delay_s = await self._saga.run(group, end_turn)
            except BaseException:
                self._unreleased.update(transfer.transfer_id for transfer in group)
                raise
            if delay_s is not None:
                asyncio.get_running_loop().call_later(delay_s, self.wake, [account])
        finally:
            end_turn()

    async def _beat(self) -> None:
        failures = 0
        while True:
            try:
                await self._leases.beat(self.owner, _LEASE_S)
                self.beating, failures = True, 0
                await asyncio.sleep(_BEAT_S)
            except WalletError as error:
                self.beating = False
                _log.warning("no heartbeat: %s", error)
                await asyncio.sleep(retry_delay_s(failures))
                failures += 1

    async def _sweep(self) -> None:
        """What was left by a crash, an interruption, or another process."""
        while True:
            try:
                if self._unreleased:
                    left = list(self._unreleased)
                    await self._leases.release(self.owner, left)
                    self._unreleased.difference_update(left)
                self.wake(await self._leases.due_accounts())
            except WalletError as error:
                _log.warning("no sweep: %s", error)
            await asyncio.sleep(_SWEEP_S)

    async def _stop(self) -> None:
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._leases.leave(self.owner)
        except WalletError as error:
            _log.warning("leases left to lapse: %s", error)
