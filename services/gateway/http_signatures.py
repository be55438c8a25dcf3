"""HTTP message signatures (RFC 9421) of requests, verified under a client's registered key.

What is signed stands in the evidence log afterwards, so a signature may cover only fields that hold no secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from http_sf import StructuredFieldError, parse, ser
from starlette.datastructures import Headers

from services.core.client_keys import ClientKey
from services.core.errors import Reason, WalletError
from services.core.signed_requests import MAX_SIGNATURE_BASE_BYTES, TAG

MAX_AGE_S = 300

_INPUT, _SIGNATURE = "Signature-Input", "Signature"
_DERIVED = frozenset({"@method", "@target-uri", "@authority", "@scheme", "@path", "@query"})
_FIELDS = frozenset({"content-digest", "content-length", "content-type", "date", "idempotency-key"})
_TARGET_PARTS = frozenset({"@authority", "@path", "@query"})
_PARAMETERS = {"created": int, "expires": int, "keyid": str, "alg": str, "nonce": str, "tag": str}
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

# ([(component name, its parameters)], signature parameters)
InnerList = tuple[list[tuple[Any, dict[str, Any]]], dict[str, Any]]


class SignableRequest(NamedTuple):
    """What of a request a signature may cover; path and query as sent, percent-encoding untouched."""

    method: str
    scheme: str
    path: str
    query: str
    headers: Headers


class RequestSignature(NamedTuple):
    """A signature that verified, with all that somebody else needs to verify it again."""

    key: ClientKey
    base: bytes
    signature: bytes
    content_sha256: bytes
    created: int

    @property
    def identity(self) -> bytes:
        """The same for every signature of this key over this base: ECDSA has several."""
        return hashlib.sha256(self.key.public_key_der + self.base).digest()


def is_signed(headers: Headers) -> bool:
    """Does it claim a signature for this application?"""
    return any(f'"{TAG}"' in line for line in headers.getlist(_INPUT))


def verify_request(
    request: SignableRequest, content: bytes, keys: Sequence[ClientKey], now_s: float
) -> RequestSignature:
    """The request's one signature with our tag, verified. `Content-Digest` has been compared with `content` before.

    Raises:
        WalletError: REQUEST_SIGNATURE_INVALID with the field and the rule.
    """
    # (1) Which signature: exactly one is meant for us.
    covered, signature = _find(request.headers)
    components, parameters = covered
    # (2) Its parameters: none that we do not understand, and made just now.
    _check_parameters(parameters, now_s)
    # (3) What it covers: all that says what is asked for, and nothing secret.
    _check_components(components, request.headers)
    # (4) By whom. A revoked key is told from an unknown one to nobody.
    keyid = parameters["keyid"]
    key = next((known for known in keys if known.fingerprint == keyid and not known.revoked), None)
    if key is None:
        _refuse(_INPUT, "names by keyid a key that is registered for this credential, as sha256:<hex>")
    if parameters.get("alg", key.algorithm) != key.algorithm:
        _refuse(_INPUT, f"has the alg of its key, {key.algorithm}, or none")
    # (5) The signature itself.
    base = signature_base(request, covered)
    if len(base) > MAX_SIGNATURE_BASE_BYTES:
        _refuse(_INPUT, f"makes a signature base of at most {MAX_SIGNATURE_BASE_BYTES} bytes")
    if not key.verifies(base, signature):
        _refuse(_SIGNATURE, "verifies over the signature base (RFC 9421 §2.5) of the request as it arrived here")
    return RequestSignature(key, base, signature, hashlib.sha256(content).digest(), parameters["created"])


def signature_base(request: SignableRequest, covered: InnerList) -> bytes:
    """RFC 9421 §2.5. Raises WalletError: REQUEST_SIGNATURE_INVALID if the request lacks a covered component."""
    lines = [f'"{name}": {_value(request, name)}' for name, _ in covered[0]]
    parameters: Any = [covered]
    try:
        return "\n".join([*lines, f'"@signature-params": {ser(parameters)}']).encode("ascii")
    except UnicodeEncodeError:
        _refuse(_INPUT, "covers components in ASCII")


# (1)
def _find(headers: Headers) -> tuple[InnerList, bytes]:
    inputs, signatures = _dictionary(headers, _INPUT), _dictionary(headers, _SIGNATURE)
    tagged = {
        label: member
        for label, member in inputs.items()
        if isinstance(member, tuple) and isinstance(member[0], list) and member[1].get("tag") == TAG
    }
    if len(tagged) != 1:
        _refuse(_INPUT, f'has exactly one signature with tag="{TAG}"')
    ((label, covered),) = tagged.items()
    signature = signatures.get(label)
    if not isinstance(signature, tuple) or not isinstance(signature[0], bytes):
        _refuse(_SIGNATURE, f"has a byte sequence under the same label as {_INPUT}")
    return covered, signature[0]


def _dictionary(headers: Headers, field: str) -> dict[str, Any]:
    lines = headers.getlist(field)
    if not lines:
        _refuse(field, "is required: a key is registered for this credential, and it signs what it changes")
    repeated: list[str] = []
    try:
        members = parse(
            ", ".join(lines).encode("latin-1"),
            tltype="dictionary",
            on_duplicate_key=lambda key, context: repeated.append(key),
        )
    except StructuredFieldError:
        _refuse(field, "is a dictionary (RFC 9651 §3.2)")
    if repeated:
        # RFC 9651 would take the last; whoever reads the first would see another signature.
        _refuse(field, "has each label and each parameter once")
    assert isinstance(members, dict)
    return members


# (2)
def _check_parameters(parameters: dict[str, Any], now_s: float) -> None:
    for name, value in parameters.items():
        if name not in _PARAMETERS:
            _refuse(_INPUT, "has no parameters but " + ", ".join(_PARAMETERS))
        # A boolean is an int to Python.
        if type(value) is not _PARAMETERS[name]:
            _refuse(_INPUT, f"has as {name} {'an integer' if _PARAMETERS[name] is int else 'a string'}")
    if "created" not in parameters or "keyid" not in parameters:
        _refuse(_INPUT, "has the parameters created and keyid")
    if abs(parameters["created"] - now_s) > MAX_AGE_S:
        _refuse(_INPUT, f"was created within {MAX_AGE_S} s of this service's clock")
    if parameters.get("expires", now_s + 1) <= now_s:
        _refuse(_INPUT, "has not expired")


# (3)
def _check_components(components: list[tuple[Any, dict[str, Any]]], headers: Headers) -> None:
    names = [name for name, _ in components]
    if any(parameters for _, parameters in components):
        _refuse(_INPUT, "covers components without parameters")
    # RFC 9421 §2: each component identifier occurs once.
    if len({str(name) for name in names}) != len(names):
        _refuse(_INPUT, "covers each component once")
    if not all(type(name) is str and name in _DERIVED | _FIELDS for name in names):
        _refuse(_INPUT, "covers only " + ", ".join([*sorted(_DERIVED), *sorted(_FIELDS)]))
    covered = set(names)
    needed = {"@method", "content-digest"}
    if "idempotency-key" in headers:
        needed.add("idempotency-key")
    if not needed <= covered or not ("@target-uri" in covered or covered >= _TARGET_PARTS):
        _refuse(
            _INPUT,
            "covers @method, content-digest, idempotency-key where one is sent, and @target-uri or "
            "@authority, @path and @query",
        )


def _value(request: SignableRequest, name: str) -> str:
    match name:
        case "@method":
            return request.method
        case "@scheme":
            return request.scheme
        case "@authority":
            return _authority(request)
        case "@path":
            return request.path
        case "@query":
            return f"?{request.query}"
        case "@target-uri":
            query = f"?{request.query}" if request.query else ""
            return f"{request.scheme}://{_authority(request)}{request.path}{query}"
        case _:
            lines = request.headers.getlist(name)
            if not lines:
                _refuse(_INPUT, "covers fields that the request has")
            # RFC 9421 §2.1: lines joined, each without the whitespace around it.
            return ", ".join(line.strip(" \t") for line in lines)


def _authority(request: SignableRequest) -> str:
    """RFC 9421 §2.2.3: lower case, without the scheme's default port."""
    hosts = request.headers.getlist("host")
    if len(hosts) != 1:
        _refuse("Host", "stands in the request once")
    return hosts[0].lower().removesuffix(_DEFAULT_PORTS.get(request.scheme, ""))


def _refuse(field: str, rule: str) -> NoReturn:
    message = f"{field}: the rule is that it {rule}"
    raise WalletError(Reason.REQUEST_SIGNATURE_INVALID, message, field=field, rule=rule)
