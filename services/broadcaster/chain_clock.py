"""How far a chain's clock is behind ours, told by the blocks that come while it is watched.

The log takes no inclusion in a block whose time is more than 15 s before the intent's, and a block's time never
changes: what such a block holds is mined and can never be proven. So nothing is sent while the next block would be one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from services.broadcaster import telemetry
from services.broadcaster.views import View, agreed_number
from services.core.grammar import BLOCK_TOLERANCE
from services.runtime import attributes
from services.runtime.chain_nodes import ChainNodes
from services.runtime.database_clock import DatabaseClock

_log = logging.getLogger(__name__)

# Less than the log bears: a block is seen a moment after its time.
MOST_BEHIND_S = int(BLOCK_TOLERANCE.total_seconds()) - 3
_WORTH_TELLING_S = 5


class ChainClock:
    def __init__(
        self, chain: ChainNodes, clock: DatabaseClock, behind_s: int, remember: Callable[[int], Awaitable[None]]
    ) -> None:
        """`behind_s` is what an earlier leader found; `remember` stores what is found now."""
        self._chain = chain
        self._clock = clock
        self._remember = remember
        self._remembered_s = behind_s
        # By node: its newest block, and when it was asked for that by the monotonic clock; how far behind that was.
        self._seen: dict[str, tuple[int, float]] = {}
        self._behind_s: dict[str, int] = {}
        # At least so far, as k nodes tell; negative: ahead.
        self.behind_s = behind_s

    @property
    def is_far_behind(self) -> bool:
        return self.behind_s > MOST_BEHIND_S

    async def note(self, views: Sequence[View]) -> None:
        """Raises WalletError: DATABASE_UNAVAILABLE, LEASE_LOST."""
        now, now_monotonic = await self._clock.now(), time.monotonic()
        for view in views:
            number, asked_at = self._seen.get(view.name, (math.inf, 0.0))
            if view.latest.number > number:
                # It was not there when the node was asked before, so it is no older than that, whatever it says. An
                # old block at the head of a chain that makes none says nothing.
                before = now - timedelta(seconds=now_monotonic - asked_at)
                self._behind_s[view.name] = math.floor(before.timestamp()) - view.latest.timestamp_s
            self._seen[view.name] = (view.latest.number, view.asked_at)
        if len(self._behind_s) < self._chain.required:
            return
        self.behind_s = agreed_number(list(self._behind_s.values()), self._chain.required)
        was_far_behind = self._remembered_s > MOST_BEHIND_S
        if self.is_far_behind == was_far_behind and abs(self.behind_s - self._remembered_s) <= _WORTH_TELLING_S:
            return
        await self._remember(self.behind_s)
        self._remembered_s = self.behind_s
        if self.is_far_behind != was_far_behind:
            self._tell()

    def _tell(self) -> None:
        extra = {"chain_id": self._chain.chain_id, "behind_s": self.behind_s}
        if self.is_far_behind:
            telemetry.chains_behind.add(1, {attributes.WALLET_CHAIN_ID: self._chain.chain_id})
            _log.error("the chain's clock is behind: nothing is sent until it is right", extra=extra)
        else:
            _log.warning("the chain's clock is right again", extra=extra)
