"""The tamper-evident log: entries in links, a Merkle tree over them, signed checkpoints, tiles and bundles.

Callers: gateway, keys, txbuilder, signer, broadcaster, tracestore, other replicas of evidence (services/callers.yaml).
Tiles are read by anybody.
It must never rewrite an entry, answer an append before its commit, or sign a tree that its own log does not extend.
"""
