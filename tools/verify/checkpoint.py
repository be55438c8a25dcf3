"""The log's signed checkpoint. Source: C2SP tlog-checkpoint and signed-note."""

import re
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tools.verify import ed25519, fields
from tools.verify.refusal import Refused, quoted

_ALGORITHM_ED25519 = b"\x01"
_SIGNATURE_LINE = re.compile(r"— (\S+) (\S+)")
_TREE_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A trusted key of a log: C2SP vkey."""

    name: str
    key_id: bytes
    public_key: Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A parsed note. `text` is what is signed; `signatures` holds (name, key id, signature), none checked yet."""

    note: str
    text: bytes
    origin: str
    tree_size: int
    root_hash: bytes
    signatures: tuple[tuple[str, bytes, bytes], ...]


def _check_key_name(name: str, what: str) -> str:
    # signed-note: a key name is non-empty and has no Unicode spaces and no plus.
    if not name or "+" in name or any(c.isspace() for c in name) or not name.isprintable():
        raise Refused(f"{what} is {quoted(name)}, not a key name")
    return name


def parse_verifier_key(value: object, what: str) -> VerifierKey:
    """`name+keyid+base64(0x01 ‖ key)`, the key id being SHA-256(name ‖ 0x0A ‖ 0x01 ‖ key)[:4]."""
    parts = fields.text(value, what).split("+", 2)
    if len(parts) != 3:
        raise Refused(f"{what} is {quoted(value)}, not a vkey")
    name, key_id_hex, encoded = parts
    _check_key_name(name, what)
    key = fields.base64(encoded, what, 33)
    if key[:1] != _ALGORITHM_ED25519:
        raise Refused(f"{what} is not an Ed25519 key")
    key_id = sha256(name.encode() + b"\n" + key).digest()[:4]
    if key_id_hex != key_id.hex():
        raise Refused(f"{what}: the key id is {key_id.hex()}, not {quoted(key_id_hex)}")
    return VerifierKey(name, key_id, ed25519.load_public_key(key[1:], what))


def parse_checkpoint(note: str) -> Checkpoint:
    """The parts of a signed checkpoint note."""
    if any((c < " " and c != "\n") or "\ud800" <= c <= "\udfff" for c in note):
        raise Refused("the checkpoint holds a control character or a lone surrogate")
    text, separator, signature_block = note.rpartition("\n\n")
    if not separator or not signature_block.endswith("\n"):
        raise Refused("the checkpoint has no signature block")
    lines = text.split("\n")
    if len(lines) < 3 or not all(lines):
        raise Refused("the checkpoint's text is not origin, size, root and non-empty extension lines")
    origin, size, root = lines[:3]
    _check_key_name(origin, "the checkpoint's origin")
    if not _TREE_SIZE.fullmatch(size):
        raise Refused(f"the checkpoint's size is {quoted(size)}")
    signatures = []
    for line in signature_block[:-1].split("\n"):
        match = _SIGNATURE_LINE.fullmatch(line)
        if match is None:
            raise Refused(f"the checkpoint has a malformed signature line {quoted(line)}")
        blob = fields.base64(match[2], "a checkpoint signature")
        if len(blob) < 5:
            raise Refused("a checkpoint signature has no signature bytes")
        signatures.append((_check_key_name(match[1], "a signature's key name"), blob[:4], blob[4:]))
    return Checkpoint(
        note=note,
        text=text.encode() + b"\n",
        origin=origin,
        tree_size=int(size),
        root_hash=fields.base64(root, "the checkpoint's root hash", 32),
        signatures=tuple(signatures),
    )


def check_signatures(checkpoint: Checkpoint, keys: tuple[VerifierKey, ...]) -> VerifierKey:
    """The trusted key, named as the origin, that signed. Unknown keys are ignored; a trusted key's bad one is not."""
    signer: VerifierKey | None = None
    trusted = {(key.name, key.key_id): key for key in keys}
    for name, key_id, signature in checkpoint.signatures:
        key = trusted.get((name, key_id))
        if key is None:
            continue
        if not ed25519.is_valid(key.public_key, signature, checkpoint.text):
            raise Refused(f"the signature by the trusted key {quoted(name)} is not valid")
        if name == checkpoint.origin:
            signer = key
    if signer is None:
        raise Refused(f"no trusted key named as the origin {quoted(checkpoint.origin)} signed the checkpoint")
    return signer
