"""Which service enters which kind: a service that was broken into cannot write another one's part of a link."""

from __future__ import annotations

from collections.abc import Mapping

from services.core.entries import Kind
from services.core.errors import Reason, WalletError

Writers = Mapping[str, frozenset[Kind]]

WRITERS: Writers = {
    # Approvals; the policies themselves are the signer's.
    "gateway": frozenset({Kind.POLICY}),
    "keys": frozenset({Kind.KEY}),
    "signer": frozenset({Kind.INTENT, Kind.SIGNATURE, Kind.POLICY}),
    "broadcaster": frozenset({Kind.REQUEST, Kind.RESPONSE, Kind.INCLUSION, Kind.REVOCATION}),
    "tracestore": frozenset({Kind.ARCHIVE, Kind.EXPORT}),
}
_KNOWN: frozenset[str] = frozenset(Kind)


def check_writer(writers: Writers, caller: str, kinds: set[str]) -> None:
    """Raises WalletError CALLER_NOT_ALLOWED for a kind that is not the caller's; an unknown kind is not its matter."""
    foreign = (kinds & _KNOWN) - writers.get(caller, frozenset())
    if foreign:
        kind = min(foreign)
        raise WalletError(
            Reason.CALLER_NOT_ALLOWED, "the caller may not enter this kind", caller=caller, field="kind", kind=kind
        )
