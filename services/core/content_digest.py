"""`Content-Digest` (RFC 9530): the body is the one that the client meant to send."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Any

from http_sf import StructuredFieldError, parse

from services.core.errors import Reason, WalletError

_FIELD = "Content-Digest"
# RFC 9530 §5: the others of its registry are deprecated.
_ALGORITHMS: dict[str, Callable[[bytes], Any]] = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}


def check_content_digest(values: Sequence[str], content: bytes) -> None:
    """Compare the content with every digest that is known here; `values` are the field's lines, none if it is absent.

    Raises:
        WalletError: CONTENT_DIGEST_MISMATCH; INVALID_REQUEST where the field is malformed or has no known algorithm:
            a check that was asked for and not made would be taken for one that passed.
    """
    if not values:
        return
    try:
        digests = parse(", ".join(values).encode("latin-1"), tltype="dictionary")
    except StructuredFieldError:
        raise _refusal(Reason.INVALID_REQUEST, "is a dictionary of byte sequences (RFC 9530 §2)") from None
    assert isinstance(digests, dict)
    known = {name: member for name, member in digests.items() if name in _ALGORITHMS}
    if not known:
        raise _refusal(Reason.INVALID_REQUEST, "has a digest by sha-256 or sha-512; no other algorithm is known here")
    for name, member in known.items():
        digest = member[0] if isinstance(member, tuple) else member
        if not isinstance(digest, bytes):
            raise _refusal(Reason.INVALID_REQUEST, "is a dictionary of byte sequences (RFC 9530 §2)")
        if not hmac.compare_digest(digest, _ALGORITHMS[name](content).digest()):
            raise _refusal(Reason.CONTENT_DIGEST_MISMATCH, f"is the {name} of the body as sent")


def _refusal(reason: Reason, rule: str) -> WalletError:
    return WalletError(reason, f"{_FIELD}: the rule is that it {rule}", field=_FIELD, rule=rule)
