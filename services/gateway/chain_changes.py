"""What broadcaster tells, entered in the transfers' rows with the cursor that moves in the same commit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.core.errors import Reason, WalletError
from services.gateway.metrics import count_transfers
from services.gateway.replacement_rows import Stall, enter_stalls
from services.gateway.transfer import FINAL_STATES, State
from services.runtime.db import Database


class ChainChange(NamedTuple):
    """One transfer's state as broadcaster tells it, in its order."""

    transfer_id: str
    # None: another transaction with its nonce is finalized.
    state: State | None
    at: datetime
    tx_hash: bytes
    block_number: int | None
    receipt_status: int | None
    stall: Stall | None = None


class ChainChanges:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def follow(self, owner: str, cursor: int, next_cursor: int, changes: Sequence[ChainChange]) -> set[str]:
        """Enter changes and move the cursor in one commit; answers the transfers that changed.

        Raises:
            WalletError: LEASE_LOST when another worker follows, or the cursor is not `cursor`; nothing is changed.
        """
        async with self._database.begin() as connection:
            moved = await connection.execute(_MOVE, {"next": next_cursor, "owner": owner, "cursor": cursor})
            if moved.rowcount != 1:
                raise WalletError(Reason.LEASE_LOST, Reason.LEASE_LOST.meaning)
            known = await _lock(connection, sorted({change.transfer_id for change in changes}))
            # Only changes of state, and none after the last: a repeated event is no second one.
            entered: list[ChainChange] = []
            stalls: dict[str, Stall] = {}
            moving: set[str] = set()
            spent: set[str] = set()
            for change in changes:
                found = known.get(change.transfer_id)
                if found is None or found.state in FINAL_STATES:
                    continue
                if change.state is None:
                    spent.add(change.transfer_id)
                    continue
                stalls.pop(change.transfer_id, None)
                moving.discard(change.transfer_id)
                if change.stall is not None:
                    stalls[change.transfer_id] = change.stall
                elif found.stalled:
                    moving.add(change.transfer_id)
                if found.state is not change.state:
                    known[change.transfer_id] = found._replace(state=change.state)
                    entered.append(change)
            if entered:
                last = list({change.transfer_id: change for change in entered}.values())
                await connection.execute(_FOLLOWED, _change_columns(last))
                await connection.execute(_INSERT_EVENTS, _event_columns(entered))
            if stalls:
                await enter_stalls(connection, list(stalls.values()))
            if moving:
                await connection.execute(_MOVING_AGAIN, {"ids": sorted(moving)})
            if spent:
                await connection.execute(_SPENT, {"ids": sorted(spent)})
        count_transfers(change.state for change in entered if change.state is not None)
        return {change.transfer_id for change in entered} | spent


class _Known(NamedTuple):
    state: State
    stalled: bool


async def _lock(connection: AsyncConnection, transfer_ids: list[str]) -> dict[str, _Known]:
    rows = await connection.execute(_LOCK, {"ids": transfer_ids})
    return {row.transfer_id: _Known(State(row.state), row.stall is not None) for row in rows}


def _change_columns(changes: Sequence[ChainChange]) -> dict[str, list[Any]]:
    return {
        "ids": [change.transfer_id for change in changes],
        "states": [change.state for change in changes],
        "blocks": [change.block_number for change in changes],
        "statuses": [change.receipt_status for change in changes],
        "hashes": [change.tx_hash for change in changes],
    }


def _event_columns(changes: Sequence[ChainChange]) -> dict[str, list[Any]]:
    return {
        "ids": [change.transfer_id for change in changes],
        "states": [change.state for change in changes],
        "times": [change.at for change in changes],
    }


_MOVE = text(
    "UPDATE follow SET cursor = :next WHERE name = 'broadcaster' AND lease_owner = :owner AND cursor = :cursor"
)
_LOCK = text(
    "SELECT transfer_id, state, stall FROM transfers WHERE transfer_id = ANY(CAST(:ids AS text[])) "
    "ORDER BY transfer_id FOR UPDATE"
)
# A bump that is wanted stays due until the end: one that is signed is still to be handed over.
_FOLLOWED = text(
    """
    UPDATE transfers t SET state = i.state, updated_at = now(), block_number = i.block_number,
        receipt_status = i.receipt_status, tx_hash = i.tx_hash, lease_owner = NULL, stall = NULL,
        replacement_wanted = CASE WHEN i.state <> 'FINALIZED' THEN t.replacement_wanted END,
        next_attempt_at = CASE WHEN i.state <> 'FINALIZED' AND (t.replacement_wanted IS NOT NULL OR t.nonce_spent)
            THEN t.next_attempt_at END
    FROM unnest(CAST(:ids AS text[]), CAST(:states AS text[]), CAST(:blocks AS bigint[]), CAST(:statuses AS smallint[]),
                CAST(:hashes AS bytea[])) AS i(transfer_id, state, block_number, receipt_status, tx_hash)
    WHERE t.transfer_id = i.transfer_id
    """
)
_INSERT_EVENTS = text(
    """
    INSERT INTO transfer_events (transfer_id, state, at)
    SELECT transfer_id, state, at
    FROM unnest(CAST(:ids AS text[]), CAST(:states AS text[]), CAST(:times AS timestamptz[]))
        WITH ORDINALITY AS i(transfer_id, state, at, place) ORDER BY place
    """
)
_MOVING_AGAIN = text("UPDATE transfers SET stall = NULL WHERE transfer_id = ANY(CAST(:ids AS text[]))")
# The saga ends it: what its failure is called depends on the superseding link. Whoever works on it now has lost it.
_SPENT = text(
    """
    UPDATE transfers SET nonce_spent = true, updated_at = now(), attempts = 0, fencing = fencing + 1,
        lease_owner = NULL, next_attempt_at = clock_timestamp()
    WHERE transfer_id = ANY(CAST(:ids AS text[])) AND state NOT IN ('FINALIZED', 'FAILED') AND NOT nonce_spent
    """
)
