"""Server-sent events of one transfer: every change of state, from the first or after `Last-Event-ID`, until the last.

Source: HTML Living Standard §9.2, Server-sent events.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from services.core.canonical import format_time, to_hex
from services.core.errors import Reason, WalletError
from services.gateway.changes import Changes
from services.gateway.store import Store, TransferEvent
from services.gateway.transfer import FINAL_STATES, State
from services.gateway.views import TransferEventView, failure_view

_KEEP_ALIVE_S = 15.0
# Known from here on; before, an event does not tell it.
_HASHLESS = frozenset({State.ACCEPTED, State.AWAITING_APPROVAL, State.BUILT})


def parse_last_event_id(value: str | None) -> int:
    """Raises WalletError: INVALID_REQUEST unless it is the id of an event."""
    if not value:
        return 0
    if not (value.isascii() and value.isdecimal() and len(value) <= 18):
        rule = "the id of an event of this stream"
        raise WalletError(Reason.INVALID_REQUEST, "not an event id", field="Last-Event-ID", rule=rule)
    return int(value)


async def event_stream(store: Store, changes: Changes, transfer_id: str, after: int) -> AsyncIterator[str]:
    """Ends after FINALIZED or FAILED, when the process stops, and when the client leaves."""
    yield "retry: 1000\n\n"
    written_at = time.monotonic()
    with changes.watch(transfer_id) as watch:
        while not changes.stopping:
            for event in await store.events(transfer_id, after):
                yield _frame(event)
                after, written_at = event.event_id, time.monotonic()
                if event.state in FINAL_STATES:
                    return
            if time.monotonic() - written_at > _KEEP_ALIVE_S:
                yield ": alive\n\n"
                written_at = time.monotonic()
            await watch.wait()


def _frame(event: TransferEvent) -> str:
    view = TransferEventView(
        transfer_id=event.transfer_id,
        state=event.state,
        at=format_time(event.at),
        tx_hash=to_hex(event.tx_hash) if event.tx_hash and event.state not in _HASHLESS else None,
        failure=failure_view(event.failure) if event.state is State.FAILED else None,
    )
    return f"id: {event.event_id}\nevent: state\ndata: {view.model_dump_json(exclude_none=True)}\n\n"
