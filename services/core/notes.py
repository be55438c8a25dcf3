"""Signed notes and checkpoints (C2SP signed-note, tlog-checkpoint) with Ed25519 keys.

A note is UTF-8 text: the lines, an empty line, then one line per signature. Only `sign_note` needs the private key, and
gets it as a callable, for the key lives in a token.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from services.core.errors import Reason, WalletError, refuse
from services.core.merkle import HASH_SIZE

MAX_NOTE_SIZE = 1 << 20  # bytes
MAX_SIGNATURES = 100

_ED25519 = b"\x01"  # signature type identifier byte
_SIGNATURE_LINE = "— "
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIZE = re.compile(r"0|[1-9][0-9]{0,19}")


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A name and the 32 bytes of an Ed25519 public key: who signs notes, or whose signatures are trusted."""

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        if not self.name or "+" in self.name or any(letter.isspace() for letter in self.name):
            refuse("name", "is not empty and has neither white space nor plus")
        if _CONTROL.search(self.name):
            refuse("name", "has no control characters")
        if len(self.public_key) != 32:
            refuse("public_key", "has 32 bytes")

    @property
    def key_id(self) -> bytes:
        """SHA-256(name ‖ 0x0A ‖ 0x01 ‖ key)[:4]."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key).digest()[:4]

    @property
    def vkey(self) -> str:
        """`name+keyid+base64(0x01 ‖ key)`, the key id in hex."""
        return f"{self.name}+{self.key_id.hex()}+{b64encode(_ED25519 + self.public_key).decode()}"

    @classmethod
    def from_vkey(cls, vkey: str) -> NoteKey:
        """Raises WalletError INVALID_REQUEST unless `vkey` is a well-formed Ed25519 key with its own key id."""
        parts = vkey.split("+", 2)  # base64 may hold a plus
        if len(parts) != 3:
            refuse("vkey", "is name+keyid+key")
        name, key_id, encoded = parts
        key = _decode_base64(encoded, "vkey")
        if key[:1] != _ED25519:
            refuse("vkey", "is of type Ed25519 (0x01)")
        note_key = cls(name, key[1:])
        if note_key.key_id.hex() != key_id:
            refuse("vkey", "has the key id that name and key hash to")
        return note_key


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log at one size. Source: C2SP tlog-checkpoint."""

    origin: str
    tree_size: int
    root_hash: bytes
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The note's text: what is signed.

        Raises:
            WalletError: INVALID_REQUEST for lines that are empty or hold a line break, a bad size or root.
        """
        for line in (self.origin, *self.extensions):
            if not line or "\n" in line or _CONTROL.search(line):
                refuse("checkpoint", "has lines that are not empty and hold no control characters")
        if not 0 <= self.tree_size < 2**64 or len(self.root_hash) != HASH_SIZE:
            refuse("checkpoint", "has a size below 2**64 and a root of 32 bytes")
        lines = (self.origin, str(self.tree_size), b64encode(self.root_hash).decode(), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def from_text(cls, text: str) -> Checkpoint:
        """Raises WalletError INVALID_REQUEST naming what is wrong with the note's text."""
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] != "" or "" in lines[:-1]:
            refuse("checkpoint", "has at least three lines, none of them empty")
        origin, size, root, *extensions = lines[:-1]
        if not _SIZE.fullmatch(size) or int(size) >= 2**64:
            refuse("checkpoint", "has a decimal tree size below 2**64 without leading zeros")
        root_hash = _decode_base64(root, "checkpoint")
        if len(root_hash) != HASH_SIZE:
            refuse("checkpoint", "has a root hash of 32 bytes")
        return cls(origin, int(size), root_hash, tuple(extensions))


def sign_note(text: str, key: NoteKey, sign: Callable[[bytes], bytes]) -> str:
    """The note of `text` with one signature. `sign` answers the 64-byte Ed25519 signature of its argument.

    Raises:
        WalletError: INVALID_REQUEST if `text` cannot be a note's; SIGNATURE_INVALID if what `sign` answers does not
            verify under `key`.
    """
    _check_text(text)
    signature = sign(text.encode())
    if not _verifies(key, signature, text):
        raise WalletError(
            Reason.SIGNATURE_INVALID, "The note's signature does not verify under its key.", name=key.name
        )
    return f"{text}\n{_SIGNATURE_LINE}{key.name} {b64encode(key.key_id + signature).decode()}\n"


def open_note(note: str, trusted: Iterable[NoteKey]) -> str:
    """The text of a note that at least one trusted key signed.

    Signatures by unknown keys are ignored; a key is known if its name and its key id both match.

    Raises:
        WalletError: INVALID_REQUEST if the note is malformed, no trusted key signed it, or one signature by a trusted
            key is bad.
    """
    text, signatures = _split_note(note)
    keys = {(key.name, key.key_id): key for key in trusted}
    verified = False
    for name, blob in signatures:
        key = keys.get((name, blob[:4]))
        if key is None:
            continue
        if not _verifies(key, blob[4:], text):
            refuse("signature", f"verifies under the trusted key {name}")
        verified = True
    if not verified:
        refuse("signature", "is there from at least one trusted key")
    return text


def _split_note(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    if len(note) > MAX_NOTE_SIZE:
        refuse("note", f"has at most {MAX_NOTE_SIZE} bytes")
    # The last empty line ends the text: no signature line is empty.
    body, separator, tail = note.rpartition("\n\n")
    text = body + "\n"
    if not separator or not tail.endswith("\n"):
        refuse("note", "is text, an empty line and signature lines, each with its line break")
    _check_text(text)
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        refuse("note", f"has at most {MAX_SIGNATURES} signatures")
    signatures = []
    for line in lines:
        name, space, encoded = line.removeprefix(_SIGNATURE_LINE).partition(" ")
        if not line.startswith(_SIGNATURE_LINE) or not name or not space or _CONTROL.search(line):
            refuse("note", "has signature lines of an em dash, a name and base64")
        blob = _decode_base64(encoded, "note")
        if len(blob) < 5:
            refuse("note", "has signatures of a four-byte key id and more")
        signatures.append((name, blob))
    return text, signatures


def _check_text(text: str) -> None:
    if not text.endswith("\n") or _CONTROL.search(text):
        refuse("note", "has a text that ends in a line break and holds no other control character")
    try:
        text.encode()
    except UnicodeEncodeError:
        refuse("note", "is UTF-8")


def _verifies(key: NoteKey, signature: bytes, text: str) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature, text.encode())
    except InvalidSignature:
        return False
    return True


def _decode_base64(text: str, field: str) -> bytes:
    try:
        data = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        data = b""
    # RFC 4648 §3.5: unused bits are zero; one value, one text.
    if b64encode(data).decode() != text:
        refuse(field, "holds base64 in its one standard form")
    return data
