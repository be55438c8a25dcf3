"""Links as they are read, and the bundles that prove them."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import dataclass

from services.core.canonical import to_hex
from services.core.entries import ADMINISTRATIVE, Leaf, check_link_id
from services.core.errors import Reason, WalletError
from services.evidence.checkpoints import CheckpointCutter
from services.evidence.links import replay
from services.evidence.store import Store, StoredEntry
from services.evidence.tiles import TileReader

FORMAT = "goldenlink.bundle.v1"


@dataclass(frozen=True)
class ReadLink:
    """A link with all of its entries, in the order of the log."""

    link_id: str
    trace_id: str
    state: str
    entries: list[tuple[Leaf, StoredEntry]]


class BundleMaker:
    def __init__(self, store: Store, tiles: TileReader, checkpoints: CheckpointCutter) -> None:
        self._store = store
        self._tiles = tiles
        self._checkpoints = checkpoints

    async def link(self, link_id: str) -> ReadLink:
        """Raises WalletError NOT_FOUND when the log holds no entry of the link, INTERNAL when it is damaged."""
        stored = await self._entries(link_id)
        try:
            entries = [(Leaf.decode(entry.leaf), entry) for entry in stored]
            return ReadLink(link_id, entries[0][0].trace_id, replay(stored).state, entries)
        except WalletError as error:
            raise WalletError(
                Reason.INTERNAL, "what is stored of the link is damaged", field="link_id", cause=str(error)
            ) from error

    async def bundle(self, link_id: str, wait_s: float) -> bytes:
        """The JSON document of `goldenlink.bundle.v1`, proven up to the link's last entry. Source: BUNDLE.md.

        Raises:
            WalletError: NOT_FOUND, also where a body was erased; INVALID_REQUEST for an administrative link;
                EVIDENCE_UNAVAILABLE when no checkpoint covered the link in time.
        """
        entries = await self._entries(link_id)
        first = Leaf.decode(entries[0].leaf)
        if first.kind in ADMINISTRATIVE:
            raise WalletError(
                Reason.INVALID_REQUEST, "an administrative link has no bundle", field="link_id", rule="is a transfer's"
            )
        last = entries[-1].index
        checkpoint = await self._checkpoints.wait_for(last + 1, wait_s)
        if checkpoint is None:
            raise WalletError(
                Reason.EVIDENCE_UNAVAILABLE, "no checkpoint covers the link yet", field="link_id", index=last
            )
        proofs = await self._tiles.inclusion_proofs([entry.index for entry in entries], checkpoint.tree_size)
        document = {
            "format": FORMAT,
            "link_id": link_id,
            "trace_id": first.trace_id,
            "entries": [_proven(entry, proof) for entry, proof in zip(entries, proofs, strict=True)],
            "checkpoint": checkpoint.note,
            "anchor": None,
        }
        return json.dumps(document, ensure_ascii=False).encode()

    async def size(self) -> int:
        """Entries committed, by whichever sequencer."""
        return await self._store.size()

    async def _entries(self, link_id: str) -> list[StoredEntry]:
        check_link_id(link_id)
        entries = await self._store.entries_of_links([link_id])
        if not entries:
            raise WalletError(Reason.NOT_FOUND, "the log holds no entry of this link", field="link_id")
        return entries


def _proven(entry: StoredEntry, proof: list[bytes]) -> dict[str, object]:
    if entry.body is None or entry.salt is None:
        raise WalletError(Reason.NOT_FOUND, "a body of this link was erased: it proves nothing", field="link_id")
    return {
        "index": entry.index,
        "leaf": b64encode(entry.leaf).decode(),
        "body": b64encode(entry.body).decode(),
        "salt": to_hex(entry.salt),
        "proof": [to_hex(node) for node in proof],
    }
