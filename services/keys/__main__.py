"""`python -m services.keys [migrate]`: wiring only."""

from __future__ import annotations

import asyncio
import logging
import sys

from protos.wallet.v1 import evidence_pb2_grpc, keys_pb2, keys_pb2_grpc
from services.core.errors import WalletError
from services.keys.accounts import Accounts
from services.keys.ceremonies import Ceremonies
from services.keys.journal import Journal
from services.keys.leaves import Approval, Leaves
from services.keys.sealing_key import SealingKey
from services.keys.servicer import KeysServicer
from services.keys.settings import KeysSettings
from services.keys.store import Store
from services.keys.wallets import Wallets
from services.runtime.channel import PeerChannel, as_channel
from services.runtime.db import Database
from services.runtime.evidence_log import APPENDING
from services.runtime.migrations import migrate
from services.runtime.server import GrpcServer, run_service, wait_for_stop

_log = logging.getLogger(__name__)
_SERVICE_NAME = keys_pb2.DESCRIPTOR.services_by_name["Keys"].full_name


async def main(settings: KeysSettings) -> None:
    database = Database(settings)
    store = Store(database)
    evidence = PeerChannel("evidence", settings, APPENDING)
    journal = Journal(store, evidence_pb2_grpc.EvidenceStub(as_channel(evidence)))
    ceremonies = Ceremonies(settings)
    sealing_key = SealingKey(database, ceremonies)
    try:
        await sealing_key.check()
    except WalletError as error:
        # The token may come back; until then what needs it is refused, and the rest is served.
        _log.error("no seed can be sealed", extra={"reason": error.reason.name})
    wallets = Wallets(store, ceremonies, sealing_key, journal)
    accounts = Accounts(store, ceremonies, journal, wallets)
    approval = Approval(settings.env == "production", settings.approved_transport_keys_file)
    leaves = Leaves(store, ceremonies, journal, wallets, approval)
    server = GrpcServer("keys", settings, [_SERVICE_NAME])
    keys_pb2_grpc.add_KeysServicer_to_server(KeysServicer(wallets, accounts, leaves, sealing_key), server.grpc)
    appending = asyncio.create_task(journal.run())
    async with server:
        await wait_for_stop(appending)
    appending.cancel()
    await asyncio.gather(appending, return_exceptions=True)
    await ceremonies.close()
    await evidence.close()
    await database.close()


if __name__ == "__main__":
    keys_settings = KeysSettings()
    if sys.argv[1:] == ["migrate"]:
        asyncio.run(migrate("keys", keys_settings))
    else:
        run_service("keys", keys_settings, lambda: main(keys_settings))
