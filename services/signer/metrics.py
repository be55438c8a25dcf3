"""What signer measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from services.runtime import attributes as names
from services.runtime.metric_names import (
    WALLET_KEY_LOAD_FAILURES,
    WALLET_POLICY_DENIALS,
    WALLET_SIGNATURE_DURATION,
    WALLET_SIGNATURES,
)
from services.runtime.metrics import counter, histogram, observe
from services.signer.bodies import ALGORITHM, failure_status
from services.signer.item import Item

key_load_failures = counter(WALLET_KEY_LOAD_FAILURES)
policy_denials = counter(WALLET_POLICY_DENIALS)

# (status, name of the Reason or "") → how many, since the start: counted by ourselves, for a signature of its own would
# pay the SDK's 8 us.
_ended: Counter[tuple[str, str]] = Counter()
_duration = histogram(WALLET_SIGNATURE_DURATION)
_durations = {
    status: _duration.series({names.WALLET_SIGNATURE_ALGORITHM: ALGORITHM, names.WALLET_SIGNATURE_STATUS: status})
    for status in ("success", "failed", "timeout")
}


def count_signatures(items: Sequence[Item]) -> None:
    """Of one call, once its items have ended and before their spans do."""
    for item in items:
        status, reason = ("success", "") if item.error is None else (failure_status(item.error), item.error.reason.name)
        _ended[status, reason] += 1
        # 0 is what a child says that refused: the token was not waited for.
        if item.duration_ms:
            _durations[status].record(item.duration_ms / 1_000, item.span)


def observe_signatures() -> None:
    """Have the counts read by whoever collects metrics; called where the process is wired."""
    observe(WALLET_SIGNATURES, lambda: [(count, _attributes(*ended)) for ended, count in list(_ended.items())])


def _attributes(status: str, reason: str) -> dict[str, str]:
    found = {names.WALLET_SIGNATURE_ALGORITHM: ALGORITHM, names.WALLET_SIGNATURE_STATUS: status}
    return found | {names.ERROR_TYPE: reason} if reason else found
