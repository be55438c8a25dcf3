"""The example in docs/POLICY.md is a policy, and says everything that one can say."""

from __future__ import annotations

import re
from pathlib import Path

from services.signer.contradictions import check_contradictions
from services.signer.policy_document import parse_policy

MANUAL = Path(__file__).parents[3] / "docs" / "POLICY.md"


def test_the_example_is_a_policy_that_uses_every_section() -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", MANUAL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    policy = parse_policy(example.encode())
    check_contradictions(policy)
    assert policy.general.hours
    assert policy.fee_wei
    assert policy.limits_by_chain_wei
    assert policy.general.assets
    assert {rule.approval is not None for rule in policy.general.assets.values()} == {True, False}
    assert len(policy.accounts) == 1
