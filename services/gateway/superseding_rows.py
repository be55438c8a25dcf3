"""Superseding links in PostgreSQL: rows of `transfers`, stored in the commit that marks what they supersede.

A superseding link is a transfer of nothing from the sender to itself, under the nonce of what it supersedes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import sha256

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.core.errors import Reason, WalletError, refuse
from services.gateway.transfer import UNSIGNED_STATES, AccountKey, State, Transfer, failure_document
from services.gateway.transfer_rows import insert_unless_stored, lock_transfer
from services.runtime.database_clock import DatabaseClock
from services.runtime.db import Database

MAX_LINK_ID = 64
# A link that failed is closed for ever, so the next one for the same end has another name; so often.
_MOST_TURNS = 16


def cancel_link_id(transfer_id: str, turn: int = 0) -> str:
    """Of the first link that supersedes this transfer, or of a later one."""
    return f"{transfer_id}:cancel" + (f".{turn}" if turn else "")


def gap_link_id(account: AccountKey, nonce: int, turn: int = 0) -> str:
    """Of the first link that fills this gap, or of a later one; where a chain's number is too long for it, by hash."""
    name = f"gap:{account[0].removeprefix('eip155:')}:{account[1].hex()}:{nonce}" + (f".{turn}" if turn else "")
    return name if len(name) <= MAX_LINK_ID else f"gap:{sha256(name.encode()).hexdigest()[:40]}"


def superseding(
    transfer: Transfer, transfer_id: str, supersedes: str, personal: bytes | None, now: datetime
) -> Transfer:
    """The link `transfer_id`, of the account and nonce of `transfer`, in its trace."""
    return Transfer(
        transfer_id=transfer_id,
        state=State.ACCEPTED,
        account_id=transfer.account_id,
        chain_id=transfer.chain_id,
        from_address=transfer.from_address,
        to_address=transfer.from_address,
        value_wei="0",
        data=b"",
        fees=b"",
        key_id=transfer.key_id,
        key_version=transfer.key_version,
        traceparent=transfer.traceparent,
        personal=personal,
        created_at=now,
        updated_at=now,
        nonce=transfer.nonce,
        supersedes=supersedes,
    )


class SupersedingRows:
    def __init__(self, database: Database, clock: DatabaseClock) -> None:
        self._database = database
        self._clock = clock

    async def cancel(self, transfer_id: str, seal: Callable[[str], bytes]) -> Transfer:
        """Begin to cancel; the transfer as it is then, or its superseding link where it has one.

        Without a signature it begins to fail, and whoever works on it loses it. With one a superseding link is stored,
        and another where the last one failed before it was signed. `seal` encrypts who cancels, for a link's id.

        Raises:
            WalletError: NOT_FOUND; INVALID_REQUEST for a superseding link; TRANSFER_CLOSED where it is in a block, has
                ended otherwise, or another transaction has its nonce.
        """
        now = await self._clock.now()
        async with self._database.begin() as connection:
            transfer = await lock_transfer(connection, transfer_id)
            if transfer is None:
                raise WalletError(Reason.NOT_FOUND, "no such transfer", field="id", rule="names a transfer")
            if transfer.supersedes is not None:
                refuse("id", "is not itself a superseding link")
            if transfer.superseded_by is not None:
                link = await _stored(connection, transfer.superseded_by)
                if link.state is not State.FAILED or link.raw_tx is not None:
                    return link
            if _is_cancelled(transfer):
                return transfer
            if transfer.state in UNSIGNED_STATES:
                sealed = seal(cancel_link_id(transfer_id))
                await connection.execute(_BEGIN_TO_FAIL, _failing_values(transfer, sealed))
                return transfer
            if transfer.state not in (State.SIGNED, State.SUBMITTED) or transfer.nonce_spent:
                rule = "is not in a block, has not ended, and no other transaction has its nonce"
                reason = Reason.TRANSFER_CLOSED
                raise WalletError(reason, reason.meaning, field="id", rule=rule, state=transfer.state)
            name = await _next_name(connection, transfer_id)
            return await _supersede(connection, transfer, name, seal(name), now)

    async def supersede(self, transfer: Transfer) -> set[str]:
        """A transfer that was to be cancelled has a signature: it goes on, and a superseding link against it."""
        now = await self._clock.now()
        async with self._database.begin() as connection:
            current = await lock_transfer(connection, transfer.transfer_id)
            if current is None or current.fencing != transfer.fencing:
                return set()
            name = cancel_link_id(transfer.transfer_id)
            link = await _supersede(connection, current, name, current.cancelled_by, now)
            await connection.execute(_GO_ON, {"id": transfer.transfer_id})
            return {transfer.transfer_id, link.transfer_id}

    async def fill_gap(self, link: Transfer, account: AccountKey, nonce: int) -> str | None:
        """Store the link that fills a gap, unless one is on its way; its id, or None.

        A link that failed is closed for ever; the next one's id counts on.
        """
        names = [gap_link_id(account, nonce, turn) for turn in range(_MOST_TURNS)]
        async with self._database.begin() as connection:
            rows = (await connection.execute(_STATES, {"ids": names})).all()
            if len(rows) == len(names) or any(row.state != State.FAILED for row in rows):
                return None
            name = names[len(rows)]
            await insert_unless_stored(connection, replace(link, transfer_id=name))
            if link.supersedes:
                await connection.execute(_MARK, {"id": link.supersedes, "by": name})
            return name

    async def states(self, transfer_ids: Sequence[str]) -> dict[str, State]:
        """Of those that are known."""
        async with self._database.begin() as connection:
            rows = (await connection.execute(_STATES, {"ids": list(transfer_ids)})).all()
        return {row.transfer_id: State(row.state) for row in rows}


def _is_cancelled(transfer: Transfer) -> bool:
    """It is being cancelled, or was before anything was signed."""
    cause = (transfer.failure or {}).get("reason")
    return cause == Reason.TRANSFER_CANCELLED.name


def _failing_values(transfer: Transfer, cancelled_by: bytes) -> dict[str, object]:
    cancelled = WalletError(Reason.TRANSFER_CANCELLED, Reason.TRANSFER_CANCELLED.meaning)
    # What fails already for another reason keeps it; should it be signed after all, it is superseded.
    failure = transfer.failure or failure_document(cancelled)
    return {"id": transfer.transfer_id, "by": cancelled_by, "failure": json.dumps(failure)}


async def _next_name(connection: AsyncConnection, transfer_id: str) -> str:
    """Of the link that supersedes a transfer whose row is locked, after those that failed.

    Raises:
        WalletError: TRANSFER_CLOSED after too many of them.
    """
    names = [cancel_link_id(transfer_id, turn) for turn in range(_MOST_TURNS)]
    known = len((await connection.execute(_STATES, {"ids": names})).all())
    if known == len(names):
        rule = f"was not tried {known} times"
        raise WalletError(Reason.TRANSFER_CLOSED, Reason.TRANSFER_CLOSED.meaning, field="id", rule=rule)
    return names[known]


async def _supersede(
    connection: AsyncConnection, transfer: Transfer, name: str, personal: bytes | None, now: datetime
) -> Transfer:
    """The superseding link, by this name, of a transfer whose row is locked."""
    link = superseding(transfer, name, transfer.transfer_id, personal, now)
    await insert_unless_stored(connection, link)
    await connection.execute(_MARK, {"id": transfer.transfer_id, "by": link.transfer_id})
    return await _stored(connection, link.transfer_id)


async def _stored(connection: AsyncConnection, transfer_id: str) -> Transfer:
    stored = await lock_transfer(connection, transfer_id)
    assert stored is not None
    return stored


_BEGIN_TO_FAIL = text(
    "UPDATE transfers SET failure = CAST(:failure AS jsonb), cancelled_by = :by, updated_at = now(), attempts = 0, "
    "fencing = fencing + 1, lease_owner = NULL, next_attempt_at = clock_timestamp() WHERE transfer_id = :id"
)
_GO_ON = text(
    "UPDATE transfers SET failure = NULL, cancelled_by = NULL, updated_at = now(), attempts = 0, lease_owner = NULL, "
    "next_attempt_at = clock_timestamp() WHERE transfer_id = :id"
)
_MARK = text("UPDATE transfers SET superseded_by = :by, updated_at = now() WHERE transfer_id = :id")
_STATES = text("SELECT transfer_id, state FROM transfers WHERE transfer_id = ANY(CAST(:ids AS text[]))")
