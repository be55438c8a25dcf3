"""A request that somebody signed (RFC 9421), kept in the log with all that checks it again.

In a body it has the members of an intent's `client_signature` (BUNDLE, "Bodies") and `content`, the request's own body.
Whoever reads it there believes nobody: the key is the reader's, and what was asked for is read from what was signed.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

from http_sf import StructuredFieldError, parse, ser

from services.core.canonical import from_hex, to_hex
from services.core.client_keys import ClientKey, read_key_der
from services.core.content_digest import check_content_digest
from services.core.errors import Reason, WalletError, refuse

# RFC 9421 §2.3: the application that a signature is made for.
TAG = "goldenlink"
MAX_SIGNATURE_BASE_BYTES = 4_096
MAX_CONTENT_BYTES = 4_096

_FIELD = "client_signature"
_PARAMETERS = '"@signature-params": '


class SignedRequest(NamedTuple):
    key: ClientKey
    base: bytes  # what was signed (RFC 9421 §2.5)
    signature: bytes
    content: bytes  # the request's body

    def document(self) -> dict[str, str]:
        """As bodies have it."""
        return {
            "algorithm": self.key.algorithm.value,
            "content": to_hex(self.content),
            "content_sha256": to_hex(sha256(self.content).digest()),
            "key_fingerprint": self.key.fingerprint,
            "public_key": to_hex(self.key.public_key_der),
            "signature": to_hex(self.signature),
            "signature_base": to_hex(self.base),
        }


class SignedTimes(NamedTuple):
    created_at: datetime
    expires_at: datetime | None


def read_signed_request(document: object) -> SignedRequest:
    """What `document` wrote.

    Raises:
        WalletError: INVALID_REQUEST for anything else.
    """
    if type(document) is not dict or any(type(value) is not str for value in document.values()):
        refuse(_FIELD, "is an object of text")
    try:
        key = read_key_der(from_hex(document["public_key"]))
        names = ("signature_base", "signature", "content")
        signed = SignedRequest(key, *(from_hex(document[name]) for name in names))
    except (KeyError, ValueError):
        refuse(_FIELD, "has a public_key of a client, signature_base, signature and content")
    if len(signed.base) > MAX_SIGNATURE_BASE_BYTES or len(signed.content) > MAX_CONTENT_BYTES:
        refuse(_FIELD, f"has a signature_base and a content of at most {MAX_SIGNATURE_BASE_BYTES} bytes each")
    if signed.document().items() - document.items():
        refuse(_FIELD, "has the fingerprint, algorithm and content_sha256 of what stands beside them")
    return signed


def check_signed_request(signed: SignedRequest, fingerprint: str, paths: Collection[str]) -> SignedTimes:
    """Its key is the one of this fingerprint, and has signed a POST of one of `paths` with this very content.

    Raises:
        WalletError: REQUEST_SIGNATURE_INVALID with the rule.
    """
    if signed.key.fingerprint != fingerprint:
        _refuse("is made by the key that the policy names")
    if not signed.key.verifies(signed.base, signed.signature):
        _refuse("verifies over its base")
    values, parameters = _read_base(signed.base)
    if parameters.get("tag") != TAG or parameters.get("keyid") != fingerprint:
        _refuse(f'has tag="{TAG}" and the key as its keyid')
    targets = [target for name in ("@path", "@target-uri") if (target := _path(name, values)) is not None]
    if values.get("@method") != "POST" or not targets or not set(targets) <= set(paths):
        _refuse(f"is of POST {min(paths)}")
    if "content-digest" not in values:
        _refuse("covers content-digest")
    try:
        check_content_digest([values["content-digest"]], signed.content)
    except WalletError:
        _refuse("is of the content that stands beside it")
    return SignedTimes(_time(parameters, "created"), _time(parameters, "expires") if "expires" in parameters else None)


def check_signed_hash(signed: SignedRequest, name: str, expected: bytes) -> None:
    """The content is the JSON object {`name`: `expected`}, 0x-hex, and says nothing else.

    Raises:
        WalletError: REQUEST_SIGNATURE_INVALID with the rule.
    """
    try:
        members = json.loads(signed.content.decode(), object_pairs_hook=list)
    except (ValueError, RecursionError):
        members = None
    # Pairs, so that no member is told twice.
    if type(members) is not list or len(members) != 1 or type(members[0]) is not tuple:
        _refuse(f"is of a content with {name} alone")
    ((member, value),) = members
    if member != name or type(value) is not str or value.lower() != to_hex(expected):
        _refuse(f"is of this {name}")


def _read_base(base: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    """The covered components' values by name, and the signature's parameters."""
    rule = "has a base as RFC 9421 §2.5 writes it, of components without parameters, each once"
    try:
        *lines, last = base.decode("ascii").split("\n")
        shown = last.removeprefix(_PARAMETERS)
        items: Any = parse(shown.encode(), tltype="list")
        if not last.startswith(_PARAMETERS) or len(items) != 1 or ser(items) != shown:
            _refuse(rule)
        ((components, parameters),) = items
        names = [name for name, own in components if type(name) is str and not own]
    except (UnicodeDecodeError, StructuredFieldError, TypeError, ValueError):
        _refuse(rule)
    if len(set(names)) != len(components) or len(lines) != len(components):
        _refuse(rule)
    values: dict[str, str] = {}
    for name, line in zip(names, lines, strict=True):
        if not line.startswith(f'"{name}": '):
            _refuse(rule)
        values[name] = line.removeprefix(f'"{name}": ')
    return values, parameters


def _path(name: str, values: dict[str, str]) -> str | None:
    """The path that this component names, as a server reads it; None where it is not covered."""
    if name not in values:
        return None
    target, query = values[name], values.get("@query", "?")
    if name == "@target-uri":
        try:
            parts = urlsplit(target)
        except ValueError:
            _refuse("has an absolute @target-uri")
        target, query = parts.path, f"?{parts.query}"
    if query != "?":
        _refuse("is of a request without a query")
    return unquote(target)


def _time(parameters: dict[str, Any], name: str) -> datetime:
    seconds = parameters.get(name)
    try:
        if type(seconds) is not int:
            raise ValueError
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        _refuse(f"has a time as {name}")


def _refuse(rule: str) -> NoReturn:
    message = f"the request's signature: the rule is that it {rule}"
    raise WalletError(Reason.REQUEST_SIGNATURE_INVALID, message, field="Signature", rule=rule)
