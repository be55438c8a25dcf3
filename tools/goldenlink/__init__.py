"""`goldenlink`: the suite from a terminal. It speaks to the gateway over HTTP, and verifies with no network at all."""
