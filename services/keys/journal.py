"""Entries of kind `key` on their way to the log, by the outbox rule: stored with the act's row, appended, then marked.

Bodies (canonical JSON; bytes as 0x-hex; no personal field) by `event`, each in a link of its own:

- `wallet_created` (link `key:wallet:<40 hex of SHA-256(wallet_id)>`): wallet_id, strength_bits,
  recovery_recipient_sha256 (null: the mnemonic was shown to nobody).
- `account_derived` (link `key:account:<account_id>`): wallet_id, account_id, chain_id (null for Ed25519), address (null
  for Ed25519), algorithm, derivation_path, public_key, key_id, key_version.
- `transport_key_registered` (link `key:transport:<40 hex of the fingerprint>`): fingerprint (SHA-256 of the public
  key's SubjectPublicKeyInfo), public_key_der, token {label, serial}.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace

from protos.wallet.v1 import evidence_pb2, evidence_pb2_grpc
from services.core.canonical import canonical_json
from services.core.entries import Kind
from services.core.errors import Code, Reason, WalletError
from services.keys.store import KeyEntry, Store
from services.runtime.telemetry import current_ids, format_traceparent, new_traceparent

_log = logging.getLogger(__name__)
RETRY_INTERVAL_S = 5.0
# The log is away, or busy. The entry may be in it or not: it is appended again, under the same entry id.
_LATER = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.ABORTED})


class Journal:
    def __init__(self, store: Store, evidence: evidence_pb2_grpc.EvidenceAsyncStub) -> None:
        self._store = store
        self._evidence = evidence

    async def ensure_appended(self, link_id: str) -> None:
        """Return once every stored entry of the link is in the log.

        Raises:
            WalletError: EVIDENCE_UNAVAILABLE; the entry stays stored and is appended later.
        """
        for entry in await self._store.pending_entries(link_id):
            await self._append(entry)

    async def run(self) -> None:
        """Append what a crash or an absent log left behind, at the start and then every few seconds."""
        while True:
            try:
                for entry in await self._store.pending_entries():
                    await self._append(entry)
            except WalletError as error:
                _log.warning("key entries wait for the log", extra={"reason": error.reason.name})
            await asyncio.sleep(RETRY_INTERVAL_S)

    async def _append(self, entry: KeyEntry) -> None:
        trace_id, span_id = current_ids(entry.traceparent)
        request = evidence_pb2.AppendEntryRequest(
            link_id=entry.link_id,
            entry_id=entry.entry_id,
            kind=Kind.KEY,
            trace_id=trace_id,
            span_id=span_id,
            body=entry.body,
        )
        try:
            await self._evidence.AppendEntry(request)
        except WalletError as error:
            if error.reason.code in _LATER:
                raise WalletError(Reason.EVIDENCE_UNAVAILABLE, Reason.EVIDENCE_UNAVAILABLE.meaning) from error
            raise
        await self._store.mark_appended(entry)


def wallet_link(wallet_id: str) -> str:
    return f"key:wallet:{hashlib.sha256(wallet_id.encode()).hexdigest()[:40]}"


def account_link(account_id: str) -> str:
    return f"key:account:{account_id}"


def transport_link(fingerprint: bytes) -> str:
    return f"key:transport:{fingerprint.hex()[:40]}"


def key_entry(link_id: str, event: str, facts: Mapping[str, Any]) -> KeyEntry:
    """The entry of an act that happens now, in the current trace or one of its own."""
    context = trace.get_current_span().get_span_context()
    return KeyEntry(
        link_id=link_id,
        entry_id=f"key:{event}",
        traceparent=format_traceparent(context) if context.is_valid else new_traceparent(),
        body=canonical_json({"event": event, **facts}),
    )
