"""Which of a transfer's transactions its row holds: the mined one, else the newest. The others are its versions.

The row changes hands when an older one is found in a block, and when a reorg revokes that block. Both within the
caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_SWAP = """
    WITH moved AS (
        SELECT s.id, s.tx_hash AS old_tx_hash, s.raw_tx AS old_raw_tx, s.answered AS old_answered,
               coalesce(s.newest_tx_hash, s.tx_hash) AS newest_tx_hash, v.tx_hash, v.raw_tx, v.answered
        FROM broadcaster.submissions s JOIN broadcaster.versions v ON v.submission_id = s.id
        WHERE {which} FOR UPDATE OF s
    ), gone AS (
        DELETE FROM broadcaster.versions v USING moved m WHERE v.tx_hash = m.tx_hash
    ), kept AS (
        INSERT INTO broadcaster.versions (tx_hash, submission_id, raw_tx, answered)
        SELECT old_tx_hash, id, old_raw_tx, old_answered FROM moved
    )
    UPDATE broadcaster.submissions s
    SET tx_hash = m.tx_hash, raw_tx = m.raw_tx, answered = m.answered,
        newest_tx_hash = nullif(m.newest_tx_hash, m.tx_hash),
        answered_nodes = '{{}}', silent_nodes = '{{}}', next_send_at = clock_timestamp()
    FROM moved m WHERE s.id = m.id
"""
_MINED = text(
    _SWAP.format(which="v.tx_hash = ANY (CAST(:tx_hashes AS bytea[])) AND s.block_number IS NULL AND s.is_open")
)
_NEWEST = text(_SWAP.format(which="s.id = ANY (CAST(:ids AS bigint[])) AND v.tx_hash = s.newest_tx_hash"))


async def put_mined(connection: AsyncConnection, tx_hashes: Sequence[bytes]) -> None:
    """Make these, where they are versions, the transactions of their rows."""
    await connection.execute(_MINED, {"tx_hashes": list(tx_hashes)})


async def put_newest(connection: AsyncConnection, submission_ids: Sequence[int]) -> None:
    """Make the newest the transaction of each row again."""
    await connection.execute(_NEWEST, {"ids": list(submission_ids)})
