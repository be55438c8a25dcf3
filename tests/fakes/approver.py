"""Somebody who signs what he approves, with a key of his own."""

from __future__ import annotations

import base64
import hashlib
import time
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.core.client_keys import ClientKey
from services.core.signed_requests import SignedRequest


class SigningApprover:
    def __init__(self) -> None:
        self.private = Ed25519PrivateKey.generate()
        self.key = ClientKey(self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    @property
    def fingerprint(self) -> str:
        return self.key.fingerprint

    def request(
        self,
        path: str,
        content: bytes = b"",
        components: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> SignedRequest:
        """A POST as a client signs it; `components` and `parameters` replace or, with None, take away."""
        values: dict[str, Any] = {
            "@method": "POST",
            "@authority": "wallet.example",
            "@path": path,
            "@query": "?",
            "content-digest": f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:",
            **(components or {}),
        }
        shown: dict[str, Any] = {
            "created": int(time.time()),
            "keyid": self.fingerprint,
            "tag": "goldenlink",
            **(parameters or {}),
        }
        values = {name: value for name, value in values.items() if value is not None}
        covered = " ".join(f'"{name}"' for name in values)
        told = "".join(
            f";{name}={value if isinstance(value, int) else chr(34) + value + chr(34)}"
            for name, value in shown.items()
            if value is not None
        )
        lines = [f'"{name}": {value}' for name, value in values.items()]
        return self.sign("\n".join([*lines, f'"@signature-params": ({covered}){told}']).encode(), content)

    def sign(self, base: bytes, content: bytes = b"") -> SignedRequest:
        return SignedRequest(self.key, base, self.private.sign(base), content)

    def approval(self, transfer_id: str, terms_sha256: str) -> SignedRequest:
        return self.request(f"/v1/transfers/{transfer_id}:approve", f'{{"terms_sha256": "{terms_sha256}"}}'.encode())

    def policy_approval(self, policy_sha256: str) -> SignedRequest:
        return self.request(f"/v1/policies/{policy_sha256}:approve")
