"""Policy, intent, HSM signature: decides, records, and only then asks the token.

Callers: gateway. It calls keys (wrapped leaves) and evidence (intents, signatures).
It never signs a digest that it did not compute itself, nor a nonce for two links, nor anything without a logged intent.
"""
