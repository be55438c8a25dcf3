"""The suite's door: HTTP/JSON for people and programs, and the saga that carries each transfer to its end.

Called by: clients over HTTP; no service calls it. It calls keys, txbuilder, signer, broadcaster, evidence, tracestore.
It never sees a key, never signs, and never answers 202 for what is not stored.
"""
