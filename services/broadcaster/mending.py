"""`python -m services.broadcaster mend CHAIN`: an operator takes a broken chain as its nodes show it now."""

from __future__ import annotations

from services.broadcaster.settings import BroadcasterSettings
from services.broadcaster.store import Store
from services.runtime.db import Database


async def mend(settings: BroadcasterSettings, chain_id: str) -> None:
    """Go on with what the nodes show. Where that contradicts what was watched, everything that is not finalized is
    revoked and sent again; links that are finalized stay so, whatever the chain holds now.

    Raises:
        SystemExit: naming the chain, when it is not broken.
    """
    database = Database(settings)
    try:
        if not await Store(database).mend(chain_id):
            raise SystemExit(f"{chain_id} is not broken")
    finally:
        await database.close()
    print(f"{chain_id}: goes on with what its nodes show")
