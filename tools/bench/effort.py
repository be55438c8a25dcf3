"""How much is measured: enough to be believed, or enough to see that the bench works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    # Rounds of bare token and batches, in turns; batches of 100 each round.
    batch_rounds: int
    batches_a_round: int
    bare_signatures: int
    # Rounds of floor and single signature, in turns; calls of each a round.
    single_rounds: int
    singles_a_round: int
    # Entries of the log where appends are measured the second time.
    large_log: int
    verified_bundles: int
    hash_known_transfers: int
    sustained_s: float
    # Transfers, in thousands.
    backlog: int
    # Rounds on the stack with tracing and on the one without, in turns.
    tracing_rounds: int
    tracing_singles: int
    tracing_batches: int
    idle_s: float


FULL = Effort(
    batch_rounds=3,
    batches_a_round=60,
    bare_signatures=3_000,
    single_rounds=5,
    singles_a_round=80,
    large_log=100_000,
    verified_bundles=1_000,
    hash_known_transfers=100,
    sustained_s=60.0,
    backlog=10_000,
    tracing_rounds=2,
    tracing_singles=150,
    tracing_batches=5,
    idle_s=10.0,
)
QUICK = Effort(
    batch_rounds=1,
    batches_a_round=20,
    bare_signatures=800,
    single_rounds=2,
    singles_a_round=25,
    large_log=10_000,
    verified_bundles=100,
    hash_known_transfers=10,
    sustained_s=10.0,
    backlog=2_000,
    tracing_rounds=1,
    tracing_singles=30,
    tracing_batches=1,
    idle_s=3.0,
)
