"""Which service enters which kind: a service that was broken into cannot write another one's part of a link."""

from __future__ import annotations

from services.core.entries import Kind
from services.core.errors import Reason, WalletError

_KINDS: dict[str, frozenset[str]] = {
    "keys": frozenset({Kind.KEY}),
    "signer": frozenset({Kind.INTENT, Kind.SIGNATURE, Kind.POLICY}),
    "broadcaster": frozenset({Kind.REQUEST, Kind.RESPONSE, Kind.INCLUSION, Kind.REVOCATION}),
    "tracestore": frozenset({Kind.ARCHIVE, Kind.EXPORT}),
}


def check_writer(caller: str, kinds: set[str]) -> None:
    """Raises WalletError CALLER_NOT_ALLOWED unless all of `kinds` are the caller's to enter."""
    for kind in sorted(kinds - _KINDS.get(caller, frozenset())):
        raise WalletError(
            Reason.CALLER_NOT_ALLOWED, "the caller may not enter this kind", caller=caller, field="kind", kind=kind
        )
