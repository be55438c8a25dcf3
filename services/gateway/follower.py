"""Follows broadcaster's stream of submissions into the transfers, from a cursor that moves with them in one commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC

from protos.wallet.v1 import broadcaster_pb2
from services.core.errors import Reason, WalletError
from services.gateway.asking import retry_delay_s
from services.gateway.chain_changes import ChainChange, ChainChanges
from services.gateway.chain_health import CHAIN_CLOCK
from services.gateway.changes import Changes
from services.gateway.leases import Leases
from services.gateway.peers import Peers
from services.gateway.replacement_rows import Stall
from services.gateway.transfer import State

_log = logging.getLogger(__name__)

_MOST_AT_ONCE = 8  # messages, of up to 500 events each
_LOOK_FOR_LEASE_S = 1.0
# Without an event for so long the stream is opened anew, to another replica perhaps: one that was frozen tells nothing.
_LONGEST_SILENCE_S = 5.0
# QUEUED is not here: a transfer that waits for the submission window stays SIGNED.
_STATES = {
    broadcaster_pb2.SUBMISSION_STATE_SUBMITTED: State.SUBMITTED,
    broadcaster_pb2.SUBMISSION_STATE_INCLUDED: State.INCLUDED,
    broadcaster_pb2.SUBMISSION_STATE_SAFE: State.SAFE,
    broadcaster_pb2.SUBMISSION_STATE_FINALIZED: State.FINALIZED,
    broadcaster_pb2.SUBMISSION_STATE_NONCE_SPENT: None,
}
# Cause, and whether a higher fee is the answer. An account without funds is for its owner to fill.
_STALLS = {
    broadcaster_pb2.STALL_CAUSE_NOT_MINED: ("NOT_MINED", True),
    broadcaster_pb2.STALL_CAUSE_UNDERPRICED: ("UNDERPRICED", True),
    broadcaster_pb2.STALL_CAUSE_INSUFFICIENT_FUNDS: ("INSUFFICIENT_FUNDS", False),
    broadcaster_pb2.STALL_CAUSE_CHAIN_CLOCK: (CHAIN_CLOCK, False),
}


class Follower:
    """One worker of all gateways follows; the cursor's compare-and-set makes a second one harmless."""

    def __init__(self, leases: Leases, chain: ChainChanges, peers: Peers, changes: Changes, owner: str) -> None:
        self._leases = leases
        self._chain = chain
        self._peers = peers
        self._changes = changes
        self._owner = owner

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            try:
                cursor = await self._leases.take(self._owner, "broadcaster")
                if cursor is None:
                    await asyncio.sleep(_LOOK_FOR_LEASE_S)
                    continue
                async for _ in self._follow(cursor):
                    failures = 0
                # It was silent: nothing failed.
                failures = 0
            except WalletError as error:
                if error.reason is not Reason.LEASE_LOST:
                    _log.warning("following broadcaster is interrupted: %s", error)
            except Exception:
                _log.exception("following broadcaster is interrupted")
            await asyncio.sleep(retry_delay_s(failures))
            failures += 1

    async def _follow(self, cursor: int) -> AsyncIterator[int]:
        """Yields each cursor that was committed; ends when the stream was silent too long."""
        messages: asyncio.Queue[broadcaster_pb2.SubmissionEvents | Exception] = asyncio.Queue(_MOST_AT_ONCE)
        reader = asyncio.create_task(self._read(cursor, messages))
        try:
            while True:
                # Whatever has come by now goes into one commit.
                taken = [await messages.get()]
                while len(taken) < _MOST_AT_ONCE and not messages.empty():
                    taken.append(messages.get_nowait())
                arrived = [event for some in taken if not isinstance(some, Exception) for event in some.events]
                if arrived:
                    last = arrived[-1].cursor
                    self._changes.announce(await self._chain.follow(self._owner, cursor, last, _chain_changes(arrived)))
                    cursor = last
                    yield cursor
                if isinstance(taken[-1], TimeoutError):
                    return
                if isinstance(taken[-1], Exception):
                    raise taken[-1]
        finally:
            reader.cancel()

    async def _read(self, cursor: int, messages: asyncio.Queue[broadcaster_pb2.SubmissionEvents | Exception]) -> None:
        """The stream into the queue; its end is the last element, as the error that it means."""
        request = broadcaster_pb2.WatchSubmissionsRequest(after_cursor=cursor)
        try:
            stream = self._peers.broadcaster.WatchSubmissions(request)
            while True:
                async with asyncio.timeout(_LONGEST_SILENCE_S):
                    some = await anext(stream, None)
                if some is None:
                    raise WalletError(Reason.SERVICE_UNAVAILABLE, "broadcaster ended its stream")
                await messages.put(some)
        except Exception as error:
            await messages.put(error)


def _chain_changes(events: list[broadcaster_pb2.SubmissionEvent]) -> list[ChainChange]:
    return [_chain_change(event) for event in events if event.submission.state in _STATES]


def _chain_change(event: broadcaster_pb2.SubmissionEvent) -> ChainChange:
    submission = event.submission
    state = _STATES[submission.state]
    included = state not in (State.SUBMITTED, None)
    cause, bump = _STALLS.get(submission.stall, ("", False))
    stall = Stall(submission.transfer_id, cause, submission.newest_tx_hash, bump) if cause else None
    return ChainChange(
        transfer_id=submission.transfer_id,
        state=state,
        at=event.at.ToDatetime(UTC),
        tx_hash=submission.tx_hash,
        block_number=submission.block_number if included else None,
        receipt_status=submission.receipt_status if included and submission.HasField("receipt_status") else None,
        stall=stall if state is State.SUBMITTED else None,
    )
