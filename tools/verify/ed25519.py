"""Ed25519 signature check. Source: RFC 8032."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tools.verify.refusal import Refused


def load_public_key(key: bytes, what: str) -> Ed25519PublicKey:
    """The public key of 32 bytes `key`."""
    try:
        return Ed25519PublicKey.from_public_bytes(key)
    except ValueError:
        raise Refused(f"{what} is not an Ed25519 public key") from None


def is_valid(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
