"""One stack for all tests of this package: every service, on real databases, tokens and a chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.suite.running_suite import Suite
from tools.stack.stack import Stack


@pytest.fixture(scope="session")
def suite(whole_stack: Stack) -> Suite:
    return Suite(whole_stack)


@pytest.fixture(scope="session")
def account(suite: Suite) -> dict[str, Any]:
    """An account with ether, for tests that do not look at its nonces."""
    return suite.make_account(1_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Within this package the canary test comes last: it reads what all others have left behind."""
    ours = [place for place, item in enumerate(items) if Path(item.fspath).parent == Path(__file__).parent]
    ordered = sorted((items[place] for place in ours), key=lambda item: Path(item.fspath).stem == "test_canary")
    for place, item in zip(ours, ordered, strict=True):
        items[place] = item
