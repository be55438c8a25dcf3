"""The evidence log for whoever can wait: appended again until the log has answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.core.errors import Reason, WalletError
from services.runtime.evidence_log import Entry, EvidenceLog, Refused

if TYPE_CHECKING:
    from protos.wallet.v1.evidence_pb2_grpc import EvidenceAsyncStub

_TIMEOUT_S = 15.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0

_log = logging.getLogger(__name__)


class PatientLog:
    def __init__(self, stub: EvidenceAsyncStub) -> None:
        self._log = EvidenceLog(stub, _TIMEOUT_S)

    async def append(self, entries: Sequence[Entry]) -> list[int | WalletError]:
        """Index of each entry in the log, or why the log refuses it for good. Waits while the log is unavailable.

        An id that the log holds already is no failure: with our body it is a repetition, with another the first stays.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                outcomes = await self._log.append(entries)
                break
            except WalletError as error:
                if error.reason is not Reason.EVIDENCE_UNAVAILABLE:
                    raise
                _log.warning("the evidence log does not answer; waiting", extra={"cause": error.details.get("cause")})
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        return [
            _refused(entry, outcome) if isinstance(outcome, Refused) else outcome
            for entry, outcome in zip(entries, outcomes, strict=True)
        ]


def _refused(entry: Entry, refused: Refused) -> int | WalletError:
    error = refused.error
    extra = {"link_id": entry.link_id, "entry_id": entry.entry_id, "reason": error.reason.name, "detail": str(error)}
    if refused.is_conflict:
        _log.error("the log holds another body under this entry id; the first stays", extra=extra)
        return int(error.details.get("index", 0))
    _log.error("the log refuses an entry", extra=extra)
    return error
