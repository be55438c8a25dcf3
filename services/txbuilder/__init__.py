"""Unsigned transactions: fees, gas and the reservation of nonces.

Caller: gateway (services/callers.yaml). It must never sign, submit, or give a nonce to two transfers: a nonce comes
back only after the signer has promised never to sign the transfer that held it.
"""
