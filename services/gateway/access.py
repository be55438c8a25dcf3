"""What a route may ask of its request: the credential with its role, the client, the idempotency key."""

from __future__ import annotations

import hashlib
import re
import time
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from protos.wallet.v1.common_pb2 import ClientSignature
from services.core.errors import Reason, WalletError
from services.core.signed_requests import MAX_CONTENT_BYTES, SignedRequest
from services.gateway.credentials import Authenticator, Credential, Role, require_role
from services.gateway.http_signatures import (
    MAX_AGE_S,
    RequestSignature,
    SignableRequest,
    is_signed,
    verify_request,
)
from services.gateway.personal import Client

_BEARER = HTTPBearer(
    auto_error=False, description="`gl_<id>_<secret>`, from `python -m services.gateway token create`."
)
IDEMPOTENCY_KEY = re.compile(r"^[!-~]{1,255}$")
# RFC 9110 §9.2.1: they change nothing, and need no signature.
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


async def _credential(
    request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
) -> Credential:
    authenticator: Authenticator = request.app.state.authenticator
    credential = await authenticator.authenticate(bearer.credentials if bearer is not None else "")
    # A client without a key that signs all the same is told so: it must not believe that its signature counted.
    if request.method not in _SAFE_METHODS and (credential.client_keys or is_signed(request.headers)):
        request.state.signature = await _verified_signature(request, credential)
    return credential


async def _verified_signature(request: Request, credential: Credential) -> RequestSignature:
    signable = SignableRequest(
        method=request.method,
        scheme=request.app.state.public_scheme,
        path=request.scope["raw_path"].decode("latin-1"),
        query=request.scope["query_string"].decode("latin-1"),
        headers=request.headers,
    )
    signature = verify_request(signable, await request.body(), credential.client_keys, time.time())
    if not _is_idempotent_by_key(request):
        # No Idempotency-Key makes a second delivery harmless, so the signature itself counts once.
        until = datetime.fromtimestamp(signature.created + 2 * MAX_AGE_S, UTC)
        if not await request.app.state.gateway.store.use_signature(signature.identity, until):
            rule = "counts once here: sign anew, with a nonce if within the same second"
            reason = Reason.REQUEST_SIGNATURE_INVALID
            raise WalletError(reason, "the signature was used before", field="Signature-Input", rule=rule)
    return signature


def _is_idempotent_by_key(request: Request) -> bool:
    return any(parameter.alias == "Idempotency-Key" for parameter in request.scope["route"].dependant.header_params)


_Authenticated = Annotated[Credential, Depends(_credential)]


def _operator(credential: _Authenticated) -> Credential:
    require_role(credential, frozenset({Role.OPERATOR}))
    return credential


def _approver(credential: _Authenticated) -> Credential:
    require_role(credential, frozenset({Role.APPROVER}))
    return credential


def _staff(credential: _Authenticated) -> Credential:
    require_role(credential, frozenset({Role.OPERATOR, Role.APPROVER}))
    return credential


# Operators create; approvers decide and read all; auditors read transfers, links, bundles, traces, policy and status.
Operator = Annotated[Credential, Depends(_operator)]
Approver = Annotated[Credential, Depends(_approver)]
Staff = Annotated[Credential, Depends(_staff)]
Reader = _Authenticated


def client_of(request: Request, credential: Credential) -> Client:
    source_ip = request.client.host if request.client else ""
    signature: RequestSignature | None = getattr(request.state, "signature", None)
    if signature is None:
        agent = request.headers.get("user-agent", "")
        fingerprint = "sha256:" + hashlib.sha256(agent.encode()).hexdigest()[:32] if agent else ""
        return Client(credential.name, source_ip, fingerprint)
    message = ClientSignature(
        key_fingerprint=signature.key.fingerprint,
        algorithm=signature.key.algorithm,
        public_key=signature.key.public_key_der,
        signature_base=signature.base,
        signature=signature.signature,
        content_sha256=signature.content_sha256,
    )
    return Client(credential.name, source_ip, signature.key.fingerprint, message.SerializeToString())


async def signed_request_of(request: Request) -> SignedRequest | None:
    """The request with its signature, to be kept; None where its credential has no key.

    Raises:
        WalletError: PAYLOAD_TOO_LARGE for a body that is not kept.
    """
    signature: RequestSignature | None = getattr(request.state, "signature", None)
    if signature is None:
        return None
    content = await request.body()
    if len(content) > MAX_CONTENT_BYTES:
        rule = f"has at most {MAX_CONTENT_BYTES} bytes where its signature is kept"
        raise WalletError(Reason.PAYLOAD_TOO_LARGE, "the body is too large", field="body", rule=rule)
    return SignedRequest(signature.key, signature.base, signature.signature, content)


def idempotency_key(value: str | None) -> str:
    """Raises WalletError: IDEMPOTENCY_KEY_MISSING, or INVALID_REQUEST for one that is no key."""
    if not value:
        reason = Reason.IDEMPOTENCY_KEY_MISSING
        raise WalletError(reason, reason.meaning, field="Idempotency-Key", rule="is required")
    if not IDEMPOTENCY_KEY.fullmatch(value):
        rule = "1 to 255 visible ASCII characters"
        raise WalletError(Reason.INVALID_REQUEST, "not an idempotency key", field="Idempotency-Key", rule=rule)
    return value
