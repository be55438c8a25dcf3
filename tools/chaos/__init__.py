"""The crash harness: the whole embedded stack under load while its parts die, pause and lie. `make chaos`.

    python -m tools.chaos [--transfers N] [--seed S]

1. Start a stack with two replicas of every service, and give some accounts ether.
2. Offer the load (`load`): a client that repeats each request, with its idempotency key, until it is accepted. What
   waits for approvals is decided about (`deciding`), and half way the policy is changed (`policy_change`).
3. Meanwhile inject faults (`faults`), in an order that the seed decides, and start again what died.
4. Heal everything, and wait until every accepted transfer has ended.
5. Read the chain, the log and the tables, and count (`audit`): nothing lost, nothing twice, everything proven and
   decided by the policy that was in force.
"""
