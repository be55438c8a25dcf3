"""The harness's policies are ones that the signer takes, and ask for what the plan relies on."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.core.addresses import Address
from services.signer.contradictions import check_contradictions
from services.signer.policy import Terms
from services.signer.policy_document import parse_policy
from tools.chaos.plan import AWAITING, Kind, Wish, make_orders
from tools.chaos.policies import policy_document

WISHES = [wish for order in make_orders(3, 2_000) for wish in order.wishes]


@pytest.mark.parametrize("version", [1, 2])
def test_each_kind_of_transfer_is_decided_as_the_plan_has_it(version: int) -> None:
    policy = parse_policy(policy_document(version).encode())
    check_contradictions(policy)
    assert policy.version == version
    for wish in WISHES:
        decision = policy.decide(_terms(wish), Address(b"\x11" * 20), [datetime.now(UTC)])
        assert decision.allowed == (wish.kind is not Kind.DENIED)
        needed = None if decision.approval is None else decision.approval.needed
        assert needed == (version if wish.kind in AWAITING else None)


def _terms(wish: Wish) -> Terms:
    return Terms(31337, Address(bytes.fromhex(wish.to[2:])), wish.value_wei, b"")
