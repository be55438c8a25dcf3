"""Rows of the release before, taken over by the revision that adds replacements."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from services.broadcaster.store import Store
from services.broadcaster.submission import NewSubmission, State
from services.core.errors import WalletError
from services.runtime import migrations
from services.runtime.db import Database, database_url
from services.runtime.settings import SERVICES_DIR, DatabaseSettings
from tests.integration.broadcaster_rig import CHAIN_ID, SENDER, bumped, make_transfer

_STATES = ("QUEUED", "REQUESTED", "SUBMITTED", "INCLUDED", "FINALIZED")


async def test_rows_of_the_first_revision_go_on(own_postgres: Callable[[], Any]) -> None:
    with own_postgres() as server:
        database = await asyncio.to_thread(server.migrated, "broadcaster")
        await _to_first(database.owner_settings)
        transfers = [make_transfer(f"t-{nonce}", nonce) for nonce in range(len(_STATES))]
        for transfer, state in zip(transfers, _STATES, strict=True):
            block = "1" if state in ("INCLUDED", "FINALIZED") else "NULL"
            server.execute(
                "INSERT INTO broadcaster.submissions (transfer_id, tx_hash, chain_id, account, nonce, raw_tx, "
                f"traceparent, state, block_number) VALUES ('{transfer.transfer_id}', '\\x{transfer.tx_hash.hex()}', "
                f"'{CHAIN_ID}', '\\x{SENDER.hex()}', {transfer.nonce}, '\\x{transfer.raw_tx.hex()}', "
                f"'{transfer.traceparent}', '{state}', {block})"
            )
        server.execute(
            "INSERT INTO broadcaster.events (transfer_id, tx_hash, state, at) "
            "SELECT transfer_id, tx_hash, state, now() FROM broadcaster.submissions"
        )
        await migrations.migrate("broadcaster", database.owner_settings)
        used = Database(database.settings)
        try:
            store = Store(used)
            events = await store.events_after(0, 10)
            assert [event.submission.state for event in events] == [State(state) for state in _STATES]
            for transfer, event in zip(transfers, events, strict=True):
                now = await store.get(transfer.transfer_id)
                assert (now.tx_hash, now.newest_tx_hash, now.stall) == (transfer.tx_hash, transfer.tx_hash, None)
                assert event.submission.newest_tx_hash == transfer.tx_hash
            # They can be replaced, but for the one that is final; and what was with the nodes can be called stalled.
            newest = {}
            for transfer in transfers:
                dearer = bumped(transfer, 25)
                (answer,) = await store.add([_new(dearer)])
                assert not isinstance(answer, WalletError)
                newest[answer.state] = answer.newest_tx_hash == dearer.tx_hash
            assert newest == {State(state): state != "FINALIZED" for state in _STATES}
        finally:
            await used.close()
        assert server.execute(
            "SELECT count(*) FROM broadcaster.submissions WHERE is_open AND state <> 'FINALIZED'"
        ).strip() == str(len(_STATES) - 1)


def _new(transfer: Any) -> NewSubmission:
    return NewSubmission(
        transfer.transfer_id,
        transfer.tx_hash,
        CHAIN_ID,
        SENDER,
        transfer.nonce,
        transfer.raw_tx,
        transfer.traceparent,
    )


async def _to_first(settings: DatabaseSettings) -> None:
    """The schema as the first revision made it."""
    engine = create_async_engine(
        database_url(settings, settings.database_owner_password_file, role="broadcaster_owner")
    )
    async with engine.connect() as connection:
        await connection.execute(text('SET search_path TO "broadcaster"'))
        tables = await connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'broadcaster'"))
        for (table,) in tables.all():
            await connection.execute(text(f'DROP TABLE "{table}" CASCADE'))
        await connection.commit()
        await connection.run_sync(_upgrade_to_first)
        await connection.commit()
    await engine.dispose()


def _upgrade_to_first(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent / "alembic"))
    config.set_main_option("version_locations", str(SERVICES_DIR / "broadcaster" / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["schema"] = "broadcaster"
    command.upgrade(config, "0001")
