"""`python -m services.evidence adopt`: an operator gives a replica without a past the one that the database has."""

from __future__ import annotations

from services.core.errors import WalletError
from services.evidence.checkpoint_file import CheckpointFile
from services.evidence.checkpoint_key import settle_checkpoint_key
from services.evidence.memory import Memory
from services.evidence.settings import EvidenceSettings
from services.evidence.store import Store
from services.evidence.tiles import TileReader
from services.runtime.db import Database
from services.runtime.token import TokenSession


async def adopt(settings: EvidenceSettings) -> None:
    """Write the checkpoint file of these settings from the newest checkpoint in the database, and say which one it is.

    Whether that is the last one that was ever published, the operator knows: from an auditor, a bundle, a mirror.

    Raises:
        SystemExit: saying why not.
    """
    database = Database(settings)
    try:
        key = await settle_checkpoint_key(database, TokenSession(settings), settings.evidence_origin)
        store = Store(database)
        file = CheckpointFile(settings.checkpoint_file, key.note_key)
        checkpoint = await Memory(store, TileReader(store), key, file, None).adopt()
    except WalletError as error:
        raise SystemExit(f"nothing is adopted: {error.message}") from None
    finally:
        await database.close()
    print(f"adopted: {checkpoint.tree_size} entries, root hash {checkpoint.root_hash.hex()}")
