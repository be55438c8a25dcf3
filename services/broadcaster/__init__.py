"""Submission of signed transactions to k nodes, and the watch over them until they are final.

Caller: gateway (services/callers.yaml). It calls evidence and the chain nodes.
It must never build or sign, decide a fee bump, send what the log has not taken, or report a block that fewer than k
nodes agree on.
"""
