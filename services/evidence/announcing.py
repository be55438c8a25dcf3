"""Where to append: the replica that holds the log says so, and the channels of writers follow."""

from __future__ import annotations

from services.evidence.sequencer import Sequencer
from services.runtime.evidence_log import APPENDING
from services.runtime.server import GrpcServer


async def announce(sequencer: Sequencer, server: GrpcServer) -> None:
    """Report APPENDING while this replica holds the lease, until cancelled.

    Also while it refuses to append: the caller learns why, at once. After a pause past its lease it says so falsely
    until its next renewal, and the epoch keeps that harmless.
    """
    while True:
        sequencer.turned.clear()
        server.report(APPENDING, sequencer.size is not None)
        await sequencer.turned.wait()
