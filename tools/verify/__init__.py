"""The stand-alone verifier: is a bundle's golden link true? It needs no network and no code of the services.

    report = verify_bundle(bundle_bytes, trust_bytes)

What it checks, with the numbers that code and output carry:

 1. form: bundle and trust file are exactly goldenlink.bundle.v1 and goldenlink.trust.v1.
 2. commitments: leaves and bodies are canonical (RFC 8785) and complete; leaf.body = SHA-256(salt ‖ body).
 3. chain: the leaves are this link's, steps 0, 1, 2 …, each naming the leaf hash before it; indexes and times grow.
 4. log: every leaf is in the checkpoint's tree (RFC 6962).
 5. checkpoint: a trusted key signed it (C2SP signed-note).
 6. anchor: the checkpoint is in a block that more than two thirds of the trusted validators signed (CometBFT).
 7. intent: unsigned_tx ↔ the fields ↔ tx_sign_hash ↔ signing_digest, on a trusted chain; the client's own signature,
    where there is one, verifies (RFC 9421).
 8. signature: signing_digest ↔ signature ↔ sender ↔ raw_tx ↔ tx_hash.
 9. submission: raw_tx ↔ request body ↔ response tx_hash.
10. block: transaction and receipt are in the tries of a header that hashes to block_hash, agreed by enough nodes.
11. state: each entry may stand where it stands; the link is closed, or as far as asked.
12. times: requested, sent, received and mined in order.
"""

from tools.verify.order import STATES
from tools.verify.refusal import Refused
from tools.verify.report import Check, Report
from tools.verify.trust import Trust, load_trust
from tools.verify.verification import MAX_FILE_BYTES, verify_bundle

__all__ = ["MAX_FILE_BYTES", "STATES", "Check", "Refused", "Report", "Trust", "load_trust", "verify_bundle"]
