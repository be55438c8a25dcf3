"""Reorgs: where the nodes' chain leaves ours, and the revocations of what was included above."""

from __future__ import annotations

from datetime import datetime

from services.broadcaster import telemetry
from services.broadcaster.evidence_log import PatientLog
from services.broadcaster.inclusion_store import InclusionStore
from services.broadcaster.outbox import NewOutboxRow, Outbox
from services.broadcaster.proving import agreed_hash
from services.core.canonical import canonical_json, to_hex
from services.core.entries import Kind
from services.runtime.chain_nodes import ChainNodes
from services.runtime.evidence_log import Entry


async def common_block(chain: ChainNodes, known: dict[int, bytes]) -> int | None:
    """The highest block of ours that k nodes still have; None when they have none of them.

    A block commits to all before it, so the nodes have either none of ours above a height, or all below it.

    Raises:
        WalletError: NODES_DISAGREE; NODE_UNAVAILABLE.
    """
    numbers = sorted(known)
    low, high = 0, len(numbers)  # those below `low` are theirs, those from `high` are not
    while low < high:
        middle = (low + high) // 2
        found, _ = await agreed_hash(chain, numbers[middle])
        if found == known[numbers[middle]]:
            low = middle + 1
        else:
            high = middle
    return numbers[low - 1] if low else None


async def revoke_above(
    store: InclusionStore, outbox: Outbox, log: PatientLog, chain_id: str, number: int, cursor: int, now: datetime
) -> None:
    """Enter what was included above block `number` as revoked, and let it be sent again. `cursor` was our newest."""
    revocations: list[NewOutboxRow] = []
    spans = telemetry.ChainSpans(chain_id)
    for one in await store.included_above(number):
        body = canonical_json(
            {"block_hash": to_hex(one.block_hash), "reason": "reorg", "depth": cursor - one.block_number + 1}
        )
        span = spans.start(telemetry.REVOCATION, one.traceparent, one.tx_hash)
        span.end()
        entry_id = f"{Kind.REVOCATION}:{one.revocations + 1}"
        entry = Entry(one.transfer_id, entry_id, Kind.REVOCATION, *span.entry_ids, body)
        revocations.append(NewOutboxRow(one.tx_hash, "", 0, entry))
    rows = await store.revoke(number, revocations, now)
    await log.append([row.entry for row in rows])
    outbox.note_appended(rows)
