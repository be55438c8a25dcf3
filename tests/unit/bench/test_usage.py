"""What the wallet itself uses is the sum over all replicas of its services, and nothing beside them."""

from __future__ import annotations

from tools.bench.usage import of_wallet


def test_each_replica_of_a_service_counts() -> None:
    assert of_wallet({"signer": 1.0, "signer-1": 2.0, "gateway": 4.0}) == 7.0


def test_what_the_wallet_stands_on_does_not_count() -> None:
    assert of_wallet({"evidence": 1.0, "postgres": 2.0, "anvil": 4.0, "tracestore": 8.0, "tracestore-1": 16.0}) == 1.0
