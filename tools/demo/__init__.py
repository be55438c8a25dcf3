"""`make demo`: from a wallet to proofs that verify offline, on embedded defaults. It leaves `build/demo/`, and nothing
running."""
