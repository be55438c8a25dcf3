from __future__ import annotations

import pytest

from services.core.errors import Reason, WalletError
from services.gateway.asking import is_retried, retry_delay_s


def test_delays_double_from_a_tenth_of_a_second_to_two() -> None:
    assert [retry_delay_s(attempts) for attempts in (0, 1, 2, 3, 4, 5, 10_000)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


@pytest.mark.parametrize(
    ("reason", "retried"),
    [
        (Reason.EVIDENCE_UNAVAILABLE, True),
        (Reason.NONCE_CONFLICT, True),
        (Reason.DEADLINE_EXCEEDED, True),
        (Reason.POLICY_DENIED, False),
        (Reason.INSUFFICIENT_FUNDS, False),
        (Reason.INTERNAL, False),
    ],
)
def test_the_code_decides_about_a_retry(reason: Reason, retried: bool) -> None:
    assert is_retried(WalletError(reason, "")) is retried
