"""The client's own signature of its request (RFC 9421), where an intent has one."""

from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tools.verify import fields
from tools.verify.refusal import Refused, quoted

_MEMBERS = frozenset({"algorithm", "content_sha256", "key_fingerprint", "public_key", "signature", "signature_base"})
_MAX_BASE_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class ClientSignature:
    algorithm: str
    content_sha256: bytes
    key_fingerprint: str
    public_key: bytes
    signature: bytes
    signature_base: bytes


def parse_client_signature(value: object) -> ClientSignature:
    members = fields.at_least(value, _MEMBERS, "client_signature")
    return ClientSignature(
        algorithm=fields.text(members["algorithm"], "client_signature.algorithm"),
        content_sha256=fields.octets(members["content_sha256"], "client_signature.content_sha256", 32),
        key_fingerprint=fields.text(members["key_fingerprint"], "client_signature.key_fingerprint"),
        public_key=fields.octets(members["public_key"], "client_signature.public_key"),
        signature=fields.octets(members["signature"], "client_signature.signature", 64),
        signature_base=fields.octets(members["signature_base"], "client_signature.signature_base"),
    )


def check_client_signature(signed: ClientSignature, client_fingerprint: str | None) -> None:
    """The key is the one that the intent names, and signed the base, whose digest of the body is the one told.

    Raises:
        Refused: it is not so.
    """
    if signed.key_fingerprint != "sha256:" + sha256(signed.public_key).hexdigest():
        raise Refused("client_signature.key_fingerprint is not SHA-256(public_key)")
    if client_fingerprint != signed.key_fingerprint:
        raise Refused("client_fingerprint is not that of the client's key")
    if len(signed.signature_base) > _MAX_BASE_BYTES:
        raise Refused(f"client_signature.signature_base has more than {_MAX_BASE_BYTES} bytes")
    if not _verifies(signed):
        raise Refused("the client's signature does not verify under its key")
    digests = [line for line in signed.signature_base.split(b"\n") if line.startswith(b'"content-digest": ')]
    # RFC 9530: of several digests each is of the same content; by sha-512 alone the body's sha256 is only told.
    if len(digests) != 1:
        raise Refused("the client's signature does not cover the body")
    if b"sha-256=" in digests[0] and b"sha-256=:" + b64encode(signed.content_sha256) + b":" not in digests[0]:
        raise Refused("client_signature.content_sha256 is not the body's that was signed")


def _verifies(signed: ClientSignature) -> bool:
    try:
        key = load_der_public_key(signed.public_key)
    except (ValueError, UnsupportedAlgorithm):
        raise Refused("client_signature.public_key is no public key") from None
    try:
        if signed.algorithm == "ed25519" and isinstance(key, Ed25519PublicKey):
            key.verify(signed.signature, signed.signature_base)
        elif (
            signed.algorithm == "ecdsa-p256-sha256"
            and isinstance(key, EllipticCurvePublicKey)
            and isinstance(key.curve, SECP256R1)
        ):
            r, s = int.from_bytes(signed.signature[:32], "big"), int.from_bytes(signed.signature[32:], "big")
            key.verify(encode_dss_signature(r, s), signed.signature_base, ECDSA(SHA256()))
        else:
            raise Refused(f"client_signature.algorithm is {quoted(signed.algorithm)}, and its key another's")
    except InvalidSignature:
        return False
    return True
